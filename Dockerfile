# docker build -t sync-operator .
# `make image` builds the same image without Docker. The machine then takes the place of the build stage.
FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN image/binary.sh /out

FROM scratch
COPY --from=build /out/ /
LABEL org.opencontainers.image.title="sync-operator" \
      org.opencontainers.image.description="Keeps MongoDB collections in sync on a schedule, in Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 65532:65532
ENTRYPOINT ["/sync-operator"]
