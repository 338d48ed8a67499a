"""A real S3 server on loopback (moto's), for tests of searches kept in an object store."""

import logging
import threading
import time
from contextlib import contextmanager

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication
from moto.server import ThreadedMotoServer

BUCKET = "bucket"
KEYS = {
    "AWS_ACCESS_KEY_ID": "pLaNt3d-id-0123456789",
    "AWS_SECRET_ACCESS_KEY": "pLaNt3d/aws+abcdef",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Server:
    """An S3 server.

    Args:
        endpoint: its address.
    """

    def __init__(self, endpoint):
        self.endpoint = endpoint
        self.environment = KEYS | {"AWS_ENDPOINT_URL": endpoint}
        self.client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        )

    def names(self, prefix=""):
        """The names of all objects in the bucket that begin so."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def get(self, name):
        """An object's content."""
        return self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read()


@contextmanager
def s3_server():
    """A server with one empty bucket, for as long as the block runs."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        server = Server(f"http://{host}:{port}")
        server.client.create_bucket(Bucket=BUCKET)
        yield server
    finally:
        running.stop()


CODES = {"500": "InternalError", "503": "SlowDown"}
BODY = "<?xml version='1.0'?><Error><Code>{}</Code><Message>fault</Message></Error>"


class Trouble:
    """What the server does to each request, as long as it is in trouble."""

    def __init__(self, real):
        self._real, self.kind, self.hits = real, None, 0

    def __call__(self, app, environ, start_response):
        kind = self.kind
        if kind is not None:
            self.hits += 1
        if kind in CODES:
            length = int(environ.get("CONTENT_LENGTH") or 0)
            environ["wsgi.input"].read(length)
            start_response(f"{kind} fault", [("Content-Type", "application/xml")])
            return [BODY.format(CODES[kind]).encode()]
        if kind == "slow":
            time.sleep(0.7)
        if kind == "cut":
            raise ConnectionResetError("fault")
        return self._real(app, environ, start_response)


def in_trouble(monkeypatch):
    """The trouble that servers of this process are in from now on, as far as its `kind` says."""
    trouble = Trouble(DomainDispatcherApplication.__call__)
    monkeypatch.setattr(
        DomainDispatcherApplication,
        "__call__",
        lambda app, environ, start: trouble(app, environ, start),
    )
    return trouble


@contextmanager
def for_a_while(trouble, kind, seconds):
    trouble.kind = kind
    timer = threading.Timer(seconds, lambda: setattr(trouble, "kind", None))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        trouble.kind = None
