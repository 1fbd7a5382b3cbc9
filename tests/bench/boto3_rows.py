"""What boto3 takes for the same work.
boto3_rows.py WORK ENDPOINT COUNT       prints "CPU WALL MEMORY": seconds of an operation, MiB
"""

import io
import os
import resource
import sys
import time

import boto3
import botocore.config

work, endpoint, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
stream_bytes = int(os.environ.get("BENCH_STREAM_BYTES", 1 << 30))
s3 = boto3.client(
    "s3",
    endpoint_url=endpoint,
    region_name="us-east-1",
    aws_access_key_id="x",
    aws_secret_access_key="x",
    verify=os.environ.get("BENCH_CA") if endpoint.startswith("https") else None,
    config=botocore.config.Config(s3={"addressing_style": "path"}),
)
small, mib = bytes(4096), bytes(1 << 20)


class Zeros(io.RawIOBase):
    """A stream of so many bytes."""

    def __init__(self, size):
        super().__init__()
        self.left = size

    def readable(self):
        return True

    def readinto(self, buffer):
        size = min(len(buffer), self.left)
        self.left -= size
        return size


def get(key, size):
    assert len(s3.get_object(Bucket="bench", Key=key)["Body"].read()) == size


def get_stream():
    body = s3.get_object(Bucket="bench", Key="stream")["Body"]
    size = 0
    for chunk in body.iter_chunks(256 << 10):
        size += len(chunk)
    assert size == stream_bytes


works = {
    "get-small": lambda i: get(f"small/{i % 64}", 4096),
    "set-small": lambda i: s3.put_object(Bucket="bench", Key=f"put/{i % 64}", Body=small),
    "remove": lambda i: s3.delete_object(Bucket="bench", Key=f"peer/{i}"),
    "get-mib": lambda i: get("mib", 1 << 20),
    "set-mib": lambda i: s3.put_object(Bucket="bench", Key="put/mib", Body=mib),
    "get-stream": lambda i: get_stream(),
    "set-stream": lambda i: s3.upload_fileobj(Zeros(stream_bytes), "bench", "multi"),
}
if work == "remove":
    for i in range(count + 1):
        s3.put_object(Bucket="bench", Key=f"peer/{i}", Body=b"")
once = works[work]
if count > 1:
    once(count)  # makes the connection
cpu, wall = time.process_time(), time.monotonic()
for i in range(count):
    once(i)
cpu, wall = time.process_time() - cpu, time.monotonic() - wall
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(f"{cpu / count:.9f} {wall / count:.9f} {memory:.3f}")
