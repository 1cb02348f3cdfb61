package main

import (
	"context"
	"fmt"
	"math/rand"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/wait"
	cacheddiscovery "k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/controller-manager/pkg/clientbuilder"
	"k8s.io/controller-manager/pkg/informerfactory"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/certificates/rootcacertpublisher"
	"k8s.io/kubernetes/pkg/controller/clusterroleaggregation"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
	"k8s.io/kubernetes/pkg/controller/namespace"
	serviceaccountcontroller "k8s.io/kubernetes/pkg/controller/serviceaccount"
	"k8s.io/kubernetes/pkg/serviceaccount"
)

// What the real kube-controller-manager has as constants or defaults.
const (
	discoveryPeriod     = 30 * time.Second
	minResyncPeriod     = 12 * time.Hour
	namespaceSyncPeriod = 5 * time.Minute
	namespaceWorkers    = 10
	gcWorkers           = 20
	tokenWorkers        = 5
	roleWorkers         = 5
	contentType         = "application/vnd.kubernetes.protobuf"
)

// Flags of the real kube-controller-manager, so that cluster.sh can start either.
type options struct {
	kubeconfig, bindAddress, certificate, key, rootCA, tokenKey string
	port, burst                                                 int
	qps                                                         float32
	leaderElect                                                 bool
	controllers                                                 []string
}

func (o *options) flags(flags *pflag.FlagSet) {
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "how to reach the API server")
	flags.StringVar(&o.bindAddress, "bind-address", "127.0.0.1", "the address of /healthz")
	flags.IntVar(&o.port, "secure-port", 10257, "the port of /healthz")
	flags.StringVar(&o.certificate, "tls-cert-file", "", "the certificate of /healthz")
	flags.StringVar(&o.key, "tls-private-key-file", "", "its key")
	flags.StringVar(&o.rootCA, "root-ca-file", "", "the CA that ServiceAccounts get")
	flags.StringVar(&o.tokenKey, "service-account-private-key-file", "", "the key that signs their tokens")
	flags.Float32Var(&o.qps, "kube-api-qps", 20, "requests a second to the API server")
	flags.IntVar(&o.burst, "kube-api-burst", 30, "requests at once")
	flags.BoolVar(&o.leaderElect, "leader-elect", false, "must be false")
	flags.StringSliceVar(&o.controllers, "controllers", nil, "the names of the controllers to start")
}

func newControllerManagerCommand() *cobra.Command {
	var o options
	command := &cobra.Command{
		Use:  "kube-controller-manager",
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			if o.leaderElect {
				return fmt.Errorf("--leader-elect must be false: this is the only one")
			}
			return o.run(context.Background())
		},
	}
	o.flags(command.Flags())
	return command
}

// What the controllers share.
type shared struct {
	options
	clients  clientbuilder.SimpleControllerClientBuilder
	typed    informers.SharedInformerFactory
	either   informerfactory.InformerFactory
	metadata metadata.Interface
	mapper   meta.ResettableRESTMapper
	ca       []byte
	started  chan struct{}
}

type run = func(context.Context)

var constructors = map[string]func(context.Context, *shared) (run, error){
	"namespace-controller":                     newNamespace,
	"garbage-collector-controller":             newGarbageCollector,
	"serviceaccount-controller":                newServiceAccount,
	"serviceaccount-token-controller":          newServiceAccountToken,
	"root-ca-certificate-publisher-controller": newRootCAPublisher,
	"clusterrole-aggregation-controller":       newClusterRoleAggregation,
}

func (o *options) run(ctx context.Context) error {
	// The garbage collector watches all kinds, deprecated ones too.
	restclient.SetDefaultWarningHandler(restclient.NoWarnings{})
	failed := make(chan error, 1)
	go func() { failed <- o.serveHealth() }()
	s, err := o.share(ctx)
	if err != nil {
		return err
	}
	var runs []run
	for _, name := range o.controllers {
		construct, ok := constructors[name]
		if !ok {
			return fmt.Errorf("no controller %q", name)
		}
		controller, err := construct(ctx, s)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		runs = append(runs, controller)
	}
	s.typed.Start(ctx.Done())
	s.either.Start(ctx.Done())
	close(s.started)
	for _, controller := range runs {
		go controller(ctx)
	}
	return <-failed
}

func (o *options) serveHealth() error {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	server := &http.Server{Addr: net.JoinHostPort(o.bindAddress, strconv.Itoa(o.port)), Handler: mux, ReadTimeout: time.Minute}
	return server.ListenAndServeTLS(o.certificate, o.key)
}

func (o *options) share(ctx context.Context) (*shared, error) {
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return nil, err
	}
	config.DisableCompression = true
	config.ContentType = contentType
	config.QPS, config.Burst = o.qps, o.burst
	s := &shared{options: *o, started: make(chan struct{})}
	s.clients.ClientConfig = config
	if s.ca, err = os.ReadFile(o.rootCA); err != nil {
		return nil, err
	}
	client, err := s.clients.Client("shared-informers")
	if err != nil {
		return nil, err
	}
	if s.metadata, err = metadata.NewForConfig(restclient.AddUserAgent(restclient.CopyConfig(config), "metadata-informers")); err != nil {
		return nil, err
	}
	discovery, err := s.clients.DiscoveryClient("controller-discovery")
	if err != nil {
		return nil, err
	}
	// As the real one: each informer lists anew after 12 to 24 hours, and keeps no managedFields.
	resync := time.Duration(float64(minResyncPeriod) * (rand.Float64() + 1))
	s.typed = informers.NewSharedInformerFactoryWithOptions(client, resync, informers.WithTransform(trim))
	s.either = informerfactory.NewInformerFactory(s.typed,
		metadatainformer.NewSharedInformerFactoryWithOptions(s.metadata, resync, metadatainformer.WithTransform(trim)))
	if err := waitForAPIServer(ctx, client); err != nil {
		return nil, err
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(cacheddiscovery.NewMemCacheClient(discovery))
	s.mapper = mapper
	go wait.UntilWithContext(ctx, func(context.Context) { mapper.Reset() }, discoveryPeriod)
	return s, nil
}

func trim(object any) (any, error) {
	if accessor, err := meta.Accessor(object); err == nil && accessor.GetManagedFields() != nil {
		accessor.SetManagedFields(nil)
	}
	return object, nil
}

func waitForAPIServer(ctx context.Context, client kubernetes.Interface) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, 10*time.Second, true, func(ctx context.Context) (bool, error) {
		_, last = client.Discovery().RESTClient().Get().AbsPath("/healthz").DoRaw(ctx)
		return last == nil, nil
	})
	if err != nil {
		return fmt.Errorf("the API server is not healthy after 10 s: %w", last)
	}
	return nil
}

func newNamespace(ctx context.Context, s *shared) (run, error) {
	config, err := s.clients.Config("namespace-controller")
	if err != nil {
		return nil, err
	}
	// To delete a namespace takes many requests.
	config.QPS *= 20
	config.Burst *= 100
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	objects, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	controller := namespace.NewNamespaceController(ctx, client, objects, client.Discovery().ServerPreferredNamespacedResources,
		s.typed.Core().V1().Namespaces(), namespaceSyncPeriod, v1.FinalizerKubernetes)
	return func(ctx context.Context) { controller.Run(ctx, namespaceWorkers) }, nil
}

func newGarbageCollector(ctx context.Context, s *shared) (run, error) {
	const name = "generic-garbage-collector"
	client, err := s.clients.Client(name)
	if err != nil {
		return nil, err
	}
	discovery, err := s.clients.DiscoveryClient(name)
	if err != nil {
		return nil, err
	}
	config, err := s.clients.Config(name)
	if err != nil {
		return nil, err
	}
	// To delete an object takes two requests.
	config.QPS *= 2
	objects, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	graph := garbagecollector.NewDependencyGraphBuilder(ctx, s.metadata, s.mapper, garbagecollector.DefaultIgnoredResources(),
		s.either, s.started)
	controller, err := garbagecollector.NewComposedGarbageCollector(ctx, client, objects, s.mapper, graph)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) {
		go controller.Sync(ctx, discovery, discoveryPeriod)
		controller.Run(ctx, gcWorkers, discoveryPeriod)
	}, nil
}

func newServiceAccount(ctx context.Context, s *shared) (run, error) {
	client, err := s.clients.Client("service-account-controller")
	if err != nil {
		return nil, err
	}
	controller, err := serviceaccountcontroller.NewServiceAccountsController(klog.FromContext(ctx),
		s.typed.Core().V1().ServiceAccounts(), s.typed.Core().V1().Namespaces(), client,
		serviceaccountcontroller.DefaultServiceAccountsControllerOptions())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { controller.Run(ctx, 1) }, nil
}

func newServiceAccountToken(ctx context.Context, s *shared) (run, error) {
	key, err := keyutil.PrivateKeyFromFile(s.tokenKey)
	if err != nil {
		return nil, err
	}
	client, err := s.clients.Client("tokens-controller")
	if err != nil {
		return nil, err
	}
	generator, err := serviceaccount.JWTTokenGenerator(serviceaccount.LegacyIssuer, key)
	if err != nil {
		return nil, err
	}
	controller, err := serviceaccountcontroller.NewTokensController(klog.FromContext(ctx),
		s.typed.Core().V1().ServiceAccounts(), s.typed.Core().V1().Secrets(), client,
		serviceaccountcontroller.TokensControllerOptions{TokenGenerator: generator, RootCA: s.ca})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { controller.Run(ctx, tokenWorkers) }, nil
}

func newRootCAPublisher(_ context.Context, s *shared) (run, error) {
	client, err := s.clients.Client("root-ca-cert-publisher")
	if err != nil {
		return nil, err
	}
	controller, err := rootcacertpublisher.NewPublisher(s.typed.Core().V1().ConfigMaps(), s.typed.Core().V1().Namespaces(), client, s.ca)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { controller.Run(ctx, 1) }, nil
}

func newClusterRoleAggregation(_ context.Context, s *shared) (run, error) {
	client, err := s.clients.Client("clusterrole-aggregation-controller")
	if err != nil {
		return nil, err
	}
	controller := clusterroleaggregation.NewClusterRoleAggregation(s.typed.Rbac().V1().ClusterRoles(), client.RbacV1())
	return func(ctx context.Context) { controller.Run(ctx, roleWorkers) }, nil
}
