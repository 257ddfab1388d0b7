# PERE in a container: `docker run -p 4567:4567 -v pere:/data IMAGE`.
# The first stage installs what package.json pins; the second holds Bun, the sources and these packages, and runs as a user without rights.
ARG BUN=1.4.5

FROM oven/bun:${BUN}-slim AS packages
WORKDIR /app
COPY package.json bun.lock ./
RUN bun install --frozen-lockfile --production --ignore-scripts

FROM oven/bun:${BUN}-slim
WORKDIR /app
RUN mkdir /data && chown bun:bun /data
COPY --from=packages /app/node_modules node_modules
COPY package.json tsconfig.json index.ts LICENSE ./
COPY engine engine
COPY web web
ENV NODE_ENV=production HOST=0.0.0.0 PORT=4567 PERE_DB=/data/pere.db
USER bun
VOLUME /data
EXPOSE 4567
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["bun", "-e", "process.exit((await fetch(`http://127.0.0.1:${process.env.PORT}/health`)).ok ? 0 : 1)"]
CMD ["bun", "index.ts"]
