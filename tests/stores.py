"""A real S3 server on loopback (moto's), for tests of searches kept in an object store."""

import logging
from contextlib import contextmanager

import boto3
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
