# The server alone, for a PostgreSQL that DATABASE_URL names: docker build -t taskledger .
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -o /taskledger ./cmd/taskledger

# Nothing but the program, and the certificates that it knows TLS servers by.
FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /taskledger /
USER 65532:65532
EXPOSE 8000
ENTRYPOINT ["/taskledger"]
