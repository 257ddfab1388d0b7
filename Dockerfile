# PERE in a container: `docker build -t pere . && docker run -p 4567:4567 -v pere:/data pere`.
#
# Two images from one file. A plain build makes the last stage: Bun, the sources and the packages that package.json pins. `--target executable` makes an
# image with a single executable, on a base image that has a C library and no shell. Both run as an unprivileged user, work with a read-only root file
# system, and keep their data in /data.
ARG BUN=1.4.5

FROM oven/bun:${BUN}-slim AS packages
WORKDIR /app
COPY package.json bun.lock ./
RUN bun install --frozen-lockfile --production --ignore-scripts

FROM packages AS compiled
COPY tsconfig.json index.ts ./
COPY engine engine
COPY web web
COPY clients clients
RUN bun run compile && mkdir /data

FROM packages AS pages
COPY tsconfig.json ./
COPY engine engine
COPY web web
COPY clients clients
RUN bun web/build.ts web/served

FROM gcr.io/distroless/base-nossl-debian12:nonroot AS executable
LABEL org.opencontainers.image.title="PERE" \
      org.opencontainers.image.description="Pushed Events with return Receipt Engine" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT"
COPY --from=compiled /app/pere /pere
COPY --from=compiled --chown=65532:65532 /data /data
COPY LICENSE /
ENV NODE_ENV=production HOST=0.0.0.0 PORT=4567 PERE_DB=/data/pere.db
WORKDIR /data
USER 65532:65532
VOLUME /data
EXPOSE 4567
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["/pere", "health"]
ENTRYPOINT ["/pere"]

FROM oven/bun:${BUN}-slim AS service
LABEL org.opencontainers.image.title="PERE" \
      org.opencontainers.image.description="Pushed Events with return Receipt Engine" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT"
WORKDIR /app
RUN mkdir /data && chown bun:bun /data
COPY --from=packages /app/node_modules node_modules
COPY package.json tsconfig.json index.ts LICENSE ./
COPY engine engine
COPY web web
COPY clients clients
COPY --from=pages /app/web/served web/served
ENV NODE_ENV=production HOST=0.0.0.0 PORT=4567 PERE_DB=/data/pere.db
USER 1000:1000
VOLUME /data
EXPOSE 4567
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["bun", "clients/health.ts"]
CMD ["bun", "index.ts"]
