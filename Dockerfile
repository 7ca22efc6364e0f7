FROM python:3.13-slim

WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY krq ./krq
RUN pip install --no-cache-dir '.[web,metrics]' && useradd --system krq
COPY examples ./examples
USER krq
CMD ["krq", "worker", "examples.tasks:app"]
