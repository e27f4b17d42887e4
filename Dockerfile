# The image of pg2kv: one binary on distroless, no shell, user 65532.
#
#   docker build -t pg2kv .
#
# For a release, pin both bases by digest and say what was built:
#
#   docker build --build-arg RUST_IMAGE=docker.io/library/rust@sha256:… \
#     --build-arg BASE_IMAGE=gcr.io/distroless/cc-debian12@sha256:… \
#     --build-arg VERSION=… --build-arg REVISION=… --build-arg CREATED=… -t pg2kv .

# Both are Debian 12, so that the binary meets the libc that it was linked against.
ARG RUST_IMAGE=docker.io/library/rust:1.95-slim-bookworm
# With the C library, the system's root certificates and nothing to run but our binary.
ARG BASE_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${RUST_IMAGE} AS tools
# It writes the list of dependencies into the binary: `syft pg2kv` or `trivy image` reads it there.
RUN --mount=type=cache,id=pg2kv-registry,target=/usr/local/cargo/registry \
    cargo install cargo-auditable --version 0.7.7 --locked --root /opt/tools

FROM tools AS build
ARG REVISION=
WORKDIR /src
COPY . .
# Both caches outlive the build, so a change of a source file compiles this crate alone.
RUN --mount=type=cache,id=pg2kv-registry,target=/usr/local/cargo/registry \
    --mount=type=cache,id=pg2kv-target,target=/src/target \
    PATH="/opt/tools/bin:$PATH" PG2KV_REVISION="$REVISION" cargo auditable build --profile dist --locked --bin pg2kv && \
    install -D target/dist/pg2kv /out/pg2kv

FROM ${BASE_IMAGE}
ARG BASE_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
ARG SOURCE=
LABEL org.opencontainers.image.title="pg2kv" \
      org.opencontainers.image.description="Keeps Cloudflare Workers KV equal to what rows in Postgres say" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
COPY --from=build /out/pg2kv /usr/local/bin/pg2kv
# A number, because Kubernetes cannot tell from a name that it is not root.
USER 65532:65532
# Loopback, the default, could be reached by no probe and no Prometheus.
ENV PG2KV__OPS__LISTEN=0.0.0.0:9464
# Memory that is free goes back at once instead of after 10 ms: the peak of a large backlog is a fifth
# lower, and its fastest pace, five times what one token may write, is a tenth slower.
ENV MIMALLOC_PURGE_DELAY=0
EXPOSE 9464
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/pg2kv"]
CMD ["run"]
