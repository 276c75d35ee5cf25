# The image contains one static binary, the usual certificate authorities and a
# data directory, and runs as an unprivileged user. It has no PostgreSQL: set
# DATABASE_URL, or see docker-compose.yml. It has no shell either, so probe it from
# outside: GET /healthz for liveness, GET /readyz for readiness.
FROM --platform=$BUILDPLATFORM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG TARGETOS TARGETARCH VERSION=dev
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags "-s -w -X main.linked=$VERSION" -o /out/gatehook ./cmd/server && \
    mkdir -m 0700 /out/data

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/gatehook /gatehook
COPY --from=build --chown=65532:65532 /out/data /data
USER 65532:65532
# The generated API key is kept in the data directory.
ENV GATEHOOK_ADDR=0.0.0.0:8080 \
    GATEHOOK_DATA_DIR=/data
VOLUME ["/data"]
EXPOSE 8080
ENTRYPOINT ["/gatehook"]
