# Two images: `rank` serves and has no torch; `export` fills a repository and has it.
FROM python:3.11-slim-bookworm AS build
ENV PATH=/opt/deeprecsys/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/deeprecsys
WORKDIR /source
COPY . .
RUN pip install -c constraints.txt .

FROM build AS build-export
# An index with CPU builds of torch saves some gigabytes: docker compose build --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL=
RUN pip install -c constraints.txt ".[export]"

FROM python:3.11-slim-bookworm AS runtime
ENV PATH=/opt/deeprecsys/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp
# A new volume takes over the owner of the folder that it is mounted on.
RUN install -d -o 10001 -g 10001 /models /state
USER 10001:10001
WORKDIR /tmp

FROM runtime AS export
COPY --from=build-export /opt/deeprecsys /opt/deeprecsys
CMD ["deeprecsys", "export", "--repository", "/models"]

FROM runtime AS rank
COPY --from=build /opt/deeprecsys /opt/deeprecsys
COPY deploy/healthcheck.py /opt/deeprecsys/healthcheck.py
EXPOSE 8500 8501
# Loading and timing the eight models comes before the first SERVING.
HEALTHCHECK --interval=5s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "/opt/deeprecsys/healthcheck.py", "127.0.0.1:8500"]
CMD ["deeprecsys", "serve", "--repository", "/models", "--host", "0.0.0.0"]
