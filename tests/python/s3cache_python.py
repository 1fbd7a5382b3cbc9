"""The Python class S3Cache whose entries s3cache.hpp reads, and which reads those of s3cache.hpp.

What is stored: the body, and the metadata `expires_at` (str of a float, unix time) and `compressed` ('true').
"""

import gzip
import io
import json
import time
import zlib

from botocore.exceptions import ClientError

MISSING = ('NoSuchKey', '404', 'NotFound')
CHUNK_BYTES = 1 << 16


def metadata_value(metadata, name):
    """Stores give a name back with other capitals, or with a dash for the underscore."""
    for found, value in metadata.items():
        if found.lower().replace('-', '_') == name:
            return value
    return None


def classify(body):
    """The kind of a value is not stored: what decodes is text, and text that parses is JSON."""
    try:
        text = body.decode('utf-8')
    except UnicodeDecodeError:
        return body
    try:
        return json.loads(text)
    except ValueError:
        return text


class S3Cache:
    def __init__(self, client, bucket, prefix=''):
        self.client = client
        self.bucket = bucket
        self.prefix = prefix

    def set(self, key, payload, ttl_seconds=None, compress=False):
        metadata = {}
        if ttl_seconds is not None:
            metadata['expires_at'] = str(time.time() + ttl_seconds)
        if compress:
            metadata['compressed'] = 'true'
        if hasattr(payload, 'read'):
            # A stream goes up as it is, and is flagged all the same.
            self.client.upload_fileobj(payload, self.bucket, self.prefix + key, ExtraArgs={'Metadata': metadata})
            return
        if isinstance(payload, (dict, list)):
            payload = json.dumps(payload)
        if isinstance(payload, str):
            payload = payload.encode('utf-8')
        if compress:
            payload = gzip.compress(payload)
        self.client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=payload, Metadata=metadata)

    def _open(self, key):
        """The answer of an entry that is there and has not expired, else None. An expired one is deleted."""
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)
        except ClientError as error:
            if error.response['Error']['Code'] in MISSING:
                return None
            raise
        expires_at = metadata_value(answer['Metadata'], 'expires_at')
        if expires_at is not None and time.time() > float(expires_at):
            answer['Body'].close()
            self.delete(key)
            return None
        return answer

    def get(self, key):
        answer = self._open(key)
        if answer is None:
            return None
        body = answer['Body'].read()
        if metadata_value(answer['Metadata'], 'compressed') == 'true':
            body = gzip.decompress(body)
        return classify(body)

    def get_stream(self, key):
        """Chunks of bytes, inflated where the body really is gzip; None where `get` gives None."""
        answer = self._open(key)
        if answer is None:
            return None
        body = answer['Body']
        if metadata_value(answer['Metadata'], 'compressed') != 'true':
            return body.iter_chunks(CHUNK_BYTES)
        start = body.read(2)
        if start != b'\x1f\x8b':
            return self._chunks(start, body)
        return self._inflated(start, body)

    @staticmethod
    def _chunks(start, body):
        yield start
        yield from body.iter_chunks(CHUNK_BYTES)

    @staticmethod
    def _inflated(start, body):
        """All members of a gzip body, one after the other, with the zero bytes that may lie between them."""
        chunks = S3Cache._chunks(start, body)
        inflate, data = None, b''
        while True:
            if not data:
                data = next(chunks, None)
                if data is None:
                    break
            if inflate is None:
                data = data.lstrip(b'\0')
                if not data:
                    continue
                inflate = zlib.decompressobj(31)
            yield inflate.decompress(data)
            data = b''
            if inflate.eof:
                data, inflate = inflate.unused_data, None
        if inflate is not None:
            raise EOFError('gzip stream ended too early')

    def delete(self, key):
        self.client.delete_object(Bucket=self.bucket, Key=self.prefix + key)


class OneWay(io.RawIOBase):
    """A stream that can only be read forwards, as a pipe or a socket."""

    def __init__(self, data):
        self._left = memoryview(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count
