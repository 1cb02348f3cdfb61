{{- define "sync-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Selector labels of all pods of the release. */}}
{{- define "sync-operator.release" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Selector labels of the pods of a component: (list $ "component") */}}
{{- define "sync-operator.selector" -}}
{{ include "sync-operator.release" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels for the objects of a component: (list $ "component") */}}
{{- define "sync-operator.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{ include "sync-operator.selector" . }}
{{- end -}}

{{- define "sync-operator.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default .Chart.AppVersion $image.tag }}
{{- end -}}
{{- end -}}

{{/* Names of the API: those of its Service, and api.hosts. */}}
{{- define "sync-operator.hosts" -}}
{{- $service := include "sync-operator.fullname" . -}}
{{- $namespaced := printf "%s.%s" $service .Release.Namespace -}}
{{- $cluster := list $service $namespaced (printf "%s.svc" $namespaced) (printf "%s.svc.cluster.local" $namespaced) -}}
{{- concat $cluster .Values.api.hosts | join "," -}}
{{- end -}}

{{/* Pod security context for the Pod Security Standard "restricted". */}}
{{- define "sync-operator.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "sync-operator.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Metadata of the pods of a component: (list $ "component") */}}
{{- define "sync-operator.podMetadata" -}}
{{- $root := index . 0 -}}
annotations:
  kubectl.kubernetes.io/default-container: {{ index . 1 }}
  # A change of a Secret of the release restarts the pods. The program watches the files of other Secrets itself.
  checksum/secrets: {{ list $root.Values.redis.url $root.Values.mongodb.uri | toJson | sha256sum }}
  {{- with $root.Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
labels:
  {{- include "sync-operator.labels" . | nindent 2 }}
  {{- with $root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "sync-operator.scheduling" -}}
{{- $root := index . 0 -}}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $root.Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- if $root.Values.topologySpreadConstraints }}
{{- toYaml $root.Values.topologySpreadConstraints | nindent 2 }}
{{- else }}
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "sync-operator.selector" $ | nindent 8 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Fails if a required Secret or its key is missing in the cluster: (list $ "value with its name" "name" "key"). Renders without a cluster pass. */}}
{{- define "sync-operator.needSecret" -}}
{{- $root := index . 0 -}}
{{- $value := index . 1 -}}
{{- $name := index . 2 -}}
{{- $key := index . 3 -}}
{{- $namespace := $root.Release.Namespace -}}
{{- if lookup "v1" "ServiceAccount" $namespace "default" -}}
{{- $secret := lookup "v1" "Secret" $namespace $name -}}
{{- if not $secret -}}
{{- fail (printf "%s: Secret %s not found in namespace %s. Create it: kubectl create secret generic %s --namespace %s --from-literal=%s=…" $value $name $namespace $name $namespace $key) -}}
{{- end -}}
{{- if not (hasKey (default dict $secret.data) $key) -}}
{{- fail (printf "%s: Secret %s has no key %q. Its keys are: %s" $value $name $key (keys (default dict $secret.data) | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Secret with the URL or the password of Redis, as YAML: name, key, file, variable. Empty if no Secret is used. */}}
{{- define "sync-operator.redisSecret" -}}
{{- $redis := .Values.redis -}}
{{- if and $redis.existingSecret $redis.urlKey -}}
{name: {{ $redis.existingSecret }}, key: {{ $redis.urlKey }}, file: url, variable: REDIS_URL_FILE}
{{- else if $redis.url -}}
{name: {{ include "sync-operator.fullname" . }}-redis, key: url, file: url, variable: REDIS_URL_FILE}
{{- else if and $redis.existingSecret $redis.passwordKey -}}
{name: {{ $redis.existingSecret }}, key: {{ $redis.passwordKey }}, file: password, variable: REDIS_PASSWORD_FILE}
{{- end -}}
{{- end -}}

{{/* Secret with the connection string of MongoDB, as YAML: name, key. Empty for the bundled MongoDB. */}}
{{- define "sync-operator.mongodbSecret" -}}
{{- $mongodb := .Values.mongodb -}}
{{- if $mongodb.existingSecret -}}
{name: {{ $mongodb.existingSecret }}, key: {{ $mongodb.uriKey }}}
{{- else if $mongodb.uri -}}
{name: {{ include "sync-operator.fullname" . }}-mongodb, key: uri}
{{- end -}}
{{- end -}}

{{/* Validation of the values: missing and contradictory ones. */}}
{{- define "sync-operator.check" -}}
{{- $redis := .Values.redis -}}
{{- $mongodb := .Values.mongodb -}}
{{- $keyed := and $redis.existingSecret $redis.urlKey -}}
{{- if not (or $keyed $redis.url $redis.host .Values.bundled.redis.enabled) -}}
{{- fail "redis: no address is set. Set redis.existingSecret and redis.urlKey, redis.url, or redis.host (with redis.existingSecret and redis.passwordKey). For an evaluation without a Redis of your own, set bundled.redis.enabled=true" -}}
{{- end -}}
{{- if and $redis.existingSecret (not $redis.urlKey) (not $redis.passwordKey) -}}
{{- fail "redis.existingSecret: no key is set. Set redis.urlKey to the key with the URL, or redis.passwordKey to the key with the password" -}}
{{- end -}}
{{- if and $redis.existingSecret $redis.urlKey $redis.passwordKey -}}
{{- fail "redis.urlKey, redis.passwordKey: both are set. Set only one, because the URL includes the password" -}}
{{- end -}}
{{- if and $redis.existingSecret $redis.passwordKey (not $redis.host) -}}
{{- fail "redis.passwordKey: requires redis.host. Set redis.host, or redis.urlKey instead of redis.passwordKey" -}}
{{- end -}}
{{- if gt (len (compact (list (ternary "a" "" (not (not $keyed))) $redis.url $redis.host (ternary "b" "" .Values.bundled.redis.enabled)))) 1 -}}
{{- fail "redis: more than one address is set. Set only one of redis.urlKey (with redis.existingSecret), redis.url, redis.host and bundled.redis.enabled" -}}
{{- end -}}
{{- if not (or $mongodb.existingSecret $mongodb.uri .Values.bundled.mongodb.enabled) -}}
{{- fail "mongodb: no connection string is set. Set mongodb.existingSecret (and mongodb.uriKey), or mongodb.uri. For an evaluation without a MongoDB of your own, set bundled.mongodb.enabled=true" -}}
{{- end -}}
{{- if gt (len (compact (list $mongodb.existingSecret $mongodb.uri (ternary "b" "" .Values.bundled.mongodb.enabled)))) 1 -}}
{{- fail "mongodb: more than one connection string is set. Set only one of mongodb.existingSecret, mongodb.uri and bundled.mongodb.enabled" -}}
{{- end -}}
{{- if not (or $mongodb.database .Values.bundled.mongodb.enabled) -}}
{{- fail "mongodb.database: required. Set it to the database of targets without a database" -}}
{{- end -}}
{{- if and (not .Values.controller.workers) (not .Values.worker.enabled) -}}
{{- fail "controller.workers, worker.enabled: no worker would execute runs. Set controller.workers above 0, or worker.enabled to true" -}}
{{- end -}}
{{- if and $mongodb.allowedDatabases (hasKey .Values.policy "tenants") -}}
{{- fail "mongodb.allowedDatabases, policy.tenants: both are set. Move the databases to policy.tenants[].mongodb.databases" -}}
{{- end -}}
{{- include "sync-operator.unique" (list "ceilings" "name" .Values.ceilings) -}}
{{- include "sync-operator.unique" (list "quotas" "namespace" .Values.quotas) -}}
{{- with $redis.existingSecret -}}
{{- include "sync-operator.needSecret" (list $ "redis.existingSecret" . (default $redis.passwordKey $redis.urlKey)) -}}
{{- end -}}
{{- with $redis.tls.caSecret -}}
{{- include "sync-operator.needSecret" (list $ "redis.tls.caSecret" . $redis.tls.caKey) -}}
{{- end -}}
{{- with $mongodb.existingSecret -}}
{{- include "sync-operator.needSecret" (list $ "mongodb.existingSecret" . $mongodb.uriKey) -}}
{{- end -}}
{{- with $mongodb.tls.caSecret -}}
{{- include "sync-operator.needSecret" (list $ "mongodb.tls.caSecret" . $mongodb.tls.caKey) -}}
{{- end -}}
{{- with .Values.api.tls.secretName -}}
{{- include "sync-operator.needSecret" (list $ "api.tls.secretName" . "tls.crt") -}}
{{- end -}}
{{- end -}}

{{/* Fails if two items have the same key: (list "value" "key" items). Their objects would have the same name. */}}
{{- define "sync-operator.unique" -}}
{{- $value := index . 0 -}}
{{- $key := index . 1 -}}
{{- $found := list -}}
{{- range index . 2 -}}
{{- $name := index . $key -}}
{{- if has $name $found -}}
{{- fail (printf "%s: two items have the %s %s. Remove one" $value $key $name) -}}
{{- end -}}
{{- $found = append $found $name -}}
{{- end -}}
{{- end -}}

{{/* Volume with the ServiceAccount token of a component. */}}
{{- define "sync-operator.token" -}}
- name: {{ . }}-token
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3607}
      - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
      - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
{{- end -}}

{{/* Token mount of the workers. Workers need a token only to read Secrets of runs. */}}
{{- define "sync-operator.workerTokenMount" -}}
{{- if or .Values.sources.secrets .Values.mongodb.secrets }}
- {name: worker-token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end }}
{{- end -}}

{{- define "sync-operator.workerTokenVolume" -}}
{{- if or .Values.sources.secrets .Values.mongodb.secrets }}
{{ include "sync-operator.token" "worker" }}
{{- end }}
{{- end -}}

{{- define "sync-operator.sourcesEnv" -}}
{{- with .Values.sources.allowedHosts }}
- {name: SOURCE_ALLOWED_HOSTS, value: {{ join "," . | quote }}}
{{- end }}
{{- with .Values.sources.allowedCIDRs }}
- {name: SOURCE_ALLOWED_CIDRS, value: {{ join "," . | quote }}}
{{- end }}
{{- if .Values.policy }}
- {name: POLICY_FILE, value: /etc/sync-operator/policy/policy.yaml}
{{- end }}
{{- end -}}

{{- define "sync-operator.policyMount" -}}
{{- if .Values.policy }}
- {name: policy, mountPath: /etc/sync-operator/policy, readOnly: true}
{{- end }}
{{- end -}}

{{/* ConfigMap with the policy. It is not in the checksum of the pods, because the policy changes without a restart. */}}
{{- define "sync-operator.policyVolume" -}}
{{- if .Values.policy }}
- name: policy
  configMap: {name: {{ include "sync-operator.fullname" . }}-policy, defaultMode: 0444}
{{- end }}
{{- end -}}

{{- define "sync-operator.logEnv" -}}
- {name: LOG_FORMAT, value: {{ .Values.log.format }}}
- {name: RUST_LOG, value: {{ .Values.log.level | quote }}}
- {name: LOG_FILTER_FILE, value: /etc/sync-operator/log/filter}
- name: HOSTNAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
{{- end -}}

{{- define "sync-operator.logMount" -}}
- {name: log, mountPath: /etc/sync-operator/log, readOnly: true}
{{- end -}}

{{/* ConfigMap with the log filter. It is not in the checksum of the pods, because the filter changes without a restart. */}}
{{- define "sync-operator.logVolume" -}}
- name: log
  configMap: {name: {{ include "sync-operator.fullname" . }}-log, defaultMode: 0444}
{{- end -}}

{{- define "sync-operator.tracesEnv" -}}
{{- with .Values.traces.endpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
- {name: OTEL_RESOURCE_ATTRIBUTES, value: "k8s.namespace.name={{ $.Release.Namespace }},k8s.pod.name=$(HOSTNAME)"}
{{- end }}
{{- end -}}

{{- define "sync-operator.redisEnv" -}}
{{- $redis := .Values.redis -}}
- {name: QUEUE_NAME, value: {{ $redis.queueName | quote }}}
{{- with include "sync-operator.redisSecret" . | fromYaml }}
{{- if .variable }}
- {name: {{ .variable }}, value: /etc/sync-operator/redis/{{ .file }}}
{{- end }}
{{- end }}
{{- if or $redis.host .Values.bundled.redis.enabled }}
- {name: REDIS_HOST, value: {{ default (printf "%s-bundled-redis" (include "sync-operator.fullname" .)) $redis.host | quote }}}
- {name: REDIS_PORT, value: {{ $redis.port | quote }}}
- {name: REDIS_DB, value: {{ $redis.db | quote }}}
- {name: REDIS_USERNAME, value: {{ $redis.username | quote }}}
- {name: REDIS_TLS, value: {{ $redis.tls.enabled | quote }}}
{{- end }}
{{- if $redis.tls.caSecret }}
- {name: REDIS_CA_FILE, value: /etc/sync-operator/redis-ca/ca.crt}
{{- end }}
{{- end -}}

{{/* Names of databases, which controllers without workers need, too. */}}
{{- define "sync-operator.databaseEnv" -}}
{{- $mongodb := .Values.mongodb -}}
- {name: MONGODB_DATABASE, value: {{ default "sync" $mongodb.database | quote }}}
{{- with $mongodb.allowedDatabases }}
- {name: ALLOWED_DATABASES, value: {{ join "," . | quote }}}
{{- end }}
{{- end -}}

{{- define "sync-operator.mongodbEnv" -}}
{{- if include "sync-operator.mongodbSecret" . }}
- {name: MONGODB_URI_FILE, value: /etc/sync-operator/mongodb/uri}
{{- else }}
- {name: MONGODB_URI, value: "mongodb://{{ include "sync-operator.fullname" . }}-bundled-mongodb:27017"}
{{- end }}
{{- if .Values.mongodb.tls.caSecret }}
- {name: MONGODB_CA_FILE, value: /etc/sync-operator/mongodb-ca/ca.crt}
{{- end }}
{{- end -}}

{{- define "sync-operator.redisMounts" -}}
{{- if include "sync-operator.redisSecret" . }}
- {name: redis, mountPath: /etc/sync-operator/redis, readOnly: true}
{{- end }}
{{- if .Values.redis.tls.caSecret }}
- {name: redis-ca, mountPath: /etc/sync-operator/redis-ca, readOnly: true}
{{- end }}
{{- end -}}

{{- define "sync-operator.mongodbMounts" -}}
{{- if include "sync-operator.mongodbSecret" . }}
- {name: mongodb, mountPath: /etc/sync-operator/mongodb, readOnly: true}
{{- end }}
{{- if .Values.mongodb.tls.caSecret }}
- {name: mongodb-ca, mountPath: /etc/sync-operator/mongodb-ca, readOnly: true}
{{- end }}
{{- end -}}

{{- define "sync-operator.redisVolumes" -}}
{{- $secret := include "sync-operator.redisSecret" . | fromYaml -}}
{{- if $secret.name }}
- name: redis
  secret: {secretName: {{ $secret.name }}, defaultMode: 0440, items: [{key: {{ $secret.key }}, path: {{ $secret.file }}}]}
{{- end }}
{{- with .Values.redis.tls }}
{{- if .caSecret }}
- name: redis-ca
  secret: {secretName: {{ .caSecret }}, defaultMode: 0440, items: [{key: {{ .caKey }}, path: ca.crt}]}
{{- end }}
{{- end }}
{{- end -}}

{{- define "sync-operator.mongodbVolumes" -}}
{{- $secret := include "sync-operator.mongodbSecret" . | fromYaml -}}
{{- if $secret.name }}
- name: mongodb
  secret: {secretName: {{ $secret.name }}, defaultMode: 0440, items: [{key: {{ $secret.key }}, path: uri}]}
{{- end }}
{{- with .Values.mongodb.tls }}
{{- if .caSecret }}
- name: mongodb-ca
  secret: {secretName: {{ .caSecret }}, defaultMode: 0440, items: [{key: {{ .caKey }}, path: ca.crt}]}
{{- end }}
{{- end }}
{{- end -}}

{{/* Probes of a container: the name of its metrics port. */}}
{{- define "sync-operator.probes" -}}
livenessProbe:
  httpGet: {path: /livez, port: {{ . }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: {{ . }}}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end -}}

{{/* Kind of the roles: Role or ClusterRole. */}}
{{- define "sync-operator.roleKind" -}}
{{- ternary "Role" "ClusterRole" .Values.namespaced -}}
{{- end -}}
