"""Exchanges entries between the Python class S3Cache and the command line `s3cache`, both ways, on one store.

    python3 tests/python/interop.py [build/s3cache]

The store: S3CACHE_TEST_ENDPOINT, S3CACHE_TEST_BUCKET (made if it isn't there), AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_REGION; for https with a certificate of its own, S3CACHE_TEST_CA. Everything lies under a prefix of this run and is
removed at the end. Prints one line a check and 'N passed, N failed'; exit status 1 if one failed.
"""

import base64
import datetime
import gzip
import json
import os
import random
import subprocess
import sys
import time
import uuid

# Older stores refuse the checksum trailers that newer versions of boto3 send unasked. Older versions don't know the name.
os.environ.setdefault('AWS_REQUEST_CHECKSUM_CALCULATION', 'when_required')
os.environ.setdefault('AWS_RESPONSE_CHECKSUM_VALIDATION', 'when_required')

import boto3  # noqa: E402  (after the environment)
from botocore.config import Config  # noqa: E402
from botocore.exceptions import ClientError  # noqa: E402

from s3cache_python import OneWay, S3Cache, metadata_value  # noqa: E402

HIT, MISS, ERROR = 0, 1, 2
COMMAND_SECONDS_MAX = 300
STREAM_BYTES = 20 * 1024 * 1024 + 4321


class Store:
    """Both sides of the exchange, and what is really stored."""

    def __init__(self, program):
        self.program = os.path.abspath(program)
        self.endpoint = os.environ['S3CACHE_TEST_ENDPOINT']
        self.region = os.environ.get('AWS_REGION') or os.environ.get('S3CACHE_TEST_REGION') or 'us-east-1'
        self.bucket = os.environ.get('S3CACHE_TEST_BUCKET') or 's3cache-test'
        self.prefix = 'interop-%s/' % uuid.uuid4().hex[:12]
        authority = os.environ.get('S3CACHE_TEST_CA')
        self.env = dict(os.environ)
        if authority:
            self.env['AWS_CA_BUNDLE'] = authority
        config = Config(s3={'addressing_style': 'path'}, retries={'max_attempts': 3}, signature_version='s3v4')
        self.client = boto3.client('s3', endpoint_url=self.endpoint, region_name=self.region, config=config,
                                   verify=authority or None)
        self.python = S3Cache(self.client, self.bucket, self.prefix)
        try:
            self.client.head_bucket(Bucket=self.bucket)
        except ClientError:
            self.client.create_bucket(Bucket=self.bucket)

    def command(self, *words, stdin=b''):
        """(exit status, standard output, standard error); stdin is always a pipe of unknown length."""
        line = [self.program, '--bucket', 's3://%s/%s' % (self.bucket, self.prefix), '--endpoint', self.endpoint,
                '--region', self.region]
        # As bytes, so that no locale stands between the test and the program.
        words = [word if isinstance(word, bytes) else word.encode('utf-8') for word in words]
        done = subprocess.run(line + words, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.env,
                              timeout=COMMAND_SECONDS_MAX)
        return done.returncode, done.stdout, done.stderr

    def set(self, key, body, *options):
        status, _, errors = self.command('set', *options, '--', key, '-', stdin=body)
        same(status, HIT, 'exit status of set: %r' % errors)

    def get(self, key):
        return self.command('get', '--', key)[:2]

    def stat(self, key):
        status, out, errors = self.command('stat', '--json', '--', key)
        same(status, HIT, 'exit status of stat: %r' % errors)
        return json.loads(out)

    def put(self, key, body, metadata):
        self.client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=body, Metadata=metadata)

    def head(self, key):
        """None if it isn't there."""
        try:
            return self.client.head_object(Bucket=self.bucket, Key=self.prefix + key)
        except ClientError as error:
            if error.response['ResponseMetadata']['HTTPStatusCode'] == 404:
                return None
            raise

    def body(self, key):
        return self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)['Body'].read()

    def metadata(self, key, name):
        return metadata_value(self.head(key)['Metadata'], name)

    def clean(self):
        pages = self.client.get_paginator('list_objects_v2').paginate(Bucket=self.bucket, Prefix=self.prefix)
        for key in [entry['Key'] for page in pages for entry in page.get('Contents', ())]:
            self.client.delete_object(Bucket=self.bucket, Key=key)


def brief(value):
    text = repr(value)
    return text if len(text) <= 200 else '%s… (%d characters)' % (text[:160], len(text))


def same(got, wanted, what='value'):
    if type(got) is not type(wanted) or (got != wanted and not (got != got and wanted != wanted)):
        raise AssertionError('%s: got %s, wanted %s' % (what, brief(got), brief(wanted)))


def crc32c(data):
    """Bit by bit, from the definition: slow, and shares nothing with what it checks."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def unix_time(value):
    """A number, its text, or ISO 8601."""
    try:
        return float(value)
    except ValueError:
        return datetime.datetime.fromisoformat(value.replace('Z', '+00:00')).timestamp()


def noise(count):
    return random.Random(count).randbytes(count)


# --------------------------------------------------------------------------------------------------- checks
# Each is a function check_…(store) or gives (name, function) pairs; a failure is an exception.

JSON_VALUES = {
    'object': {'rows': 1042, 'ok': True, 'none': None, 'nested': [1, [2, {'x': -0.5}]]},
    'list': [1, 2.5, 'three', [], {}],
    'unicode': {'name': 'Žluťoučký kůň 日本語 🐎', 'escaped': '\u2028\x7f"\\/'},
    'lone surrogate': ['\ud800'],
    'infinity': [float('inf'), float('-inf')],
    'big numbers': [10 ** 400, 1e308, 5e-324],
}
TEXTS = {
    'text': 'hello, world\n', 'unicode': 'naïve café, 東京, 🦀\n', 'NUL inside': 'a\0b', 'BOM': '\ufeff{}',
    'blank': '   ', 'CRLF': 'a\r\nb', 'almost JSON': "{'single': 'quotes'}", 'leading zero': '0123',
}
BYTES = {
    'bytes': bytes(range(256)), 'not UTF-8': b'\xff\xfe\x00abc', 'overlong': b'\xc0\xaf', 'cut off': '東'.encode()[:2],
    'gzip magic, not compressed': b'\x1f\x8bnot gzip at all', 'a gzip file as it is': gzip.compress(b'inner'),
}


def python_to_cpp():
    for compress in (False, True):
        tail = ', gzip' if compress else ''
        payloads = [('json %s' % name, value, json.dumps(value).encode()) for name, value in JSON_VALUES.items()]
        payloads += [('text %s' % name, value, value.encode()) for name, value in TEXTS.items()]
        payloads += [('bytes %s' % name, value, value) for name, value in BYTES.items()]
        payloads += [("text '123'", '123', b'123'), ('empty text', '', b''), ('empty bytes', b'', b'')]
        for name, payload, wanted in payloads:
            def check(store, payload=payload, wanted=wanted, compress=compress):
                store.python.set('k', payload, 3600, compress)
                same(store.get('k'), (HIT, wanted), 'get')
            yield 'Python to C++: ' + name + tail, check


def cpp_to_python():
    for compress in (False, True):
        options = ('--gzip',) if compress else ()
        tail = ', gzip' if compress else ''
        payloads = [('json %s' % name, '--json', json.dumps(value).encode(), value) for name, value in JSON_VALUES.items()]
        payloads += [('text %s' % name, '--text', value.encode(), value) for name, value in TEXTS.items()]
        payloads += [('bytes %s' % name, '--bytes', value, value) for name, value in BYTES.items()]
        # Python has no kinds: what parses comes back parsed, what decodes as text.
        payloads += [("text '123'", '--text', b'123', 123), ('bytes that are text', '--bytes', b'plain', 'plain'),
                     ('empty text', '--text', b'', ''), ('no kind said', None, b'{"a": [1]}', {'a': [1]})]
        for name, kind, body, wanted in payloads:
            # An object with a NaN-free value compares as usual; the stored text must be the very one that was given.
            def check(store, kind=kind, body=body, wanted=wanted, options=options):
                store.set('k', body, *options, *((kind,) if kind else ()))
                same(store.python.get('k'), wanted, 'Python get')
                stored = store.body('k')
                same(gzip.decompress(stored) if options else stored, body, 'stored body')
                same(store.metadata('k', 'compressed'), 'true' if options else None, 'metadata compressed')
                same(store.head('k').get('ContentEncoding') or '', '', 'Content-Encoding')
                same(store.get('k'), (HIT, body), 'get')
            yield 'C++ to Python: ' + name + tail, check


def check_kinds(store):
    """What C++ writes keeps its kind, with the content type and checksum that go with it."""
    types = {'json': 'application/json', 'text': 'text/plain; charset=utf-8', 'bytes': 'application/octet-stream'}
    for kind, content_type in types.items():
        store.set(kind, b'123', '--' + kind)
        same(store.metadata(kind, 'kind'), kind, 'metadata kind')
        same(store.head(kind)['ContentType'], content_type, 'Content-Type')
        same(store.stat(kind)['kind'], kind, 'kind in stat')
        checksum = base64.b64encode(crc32c(b'123').to_bytes(4, 'big')).decode()
        same(store.metadata(kind, 'crc32c'), checksum, 'metadata crc32c')


def check_bad_json_stores_nothing(store):
    store.python.delete('k')
    status, out, errors = store.command('set', '--json', 'k', '-', stdin=b"{'a': 1}")
    same((status, out), (ERROR, b''), 'set of bad JSON')
    same(len(errors.splitlines()), 1, 'lines on standard error: %r' % errors)
    same(store.head('k'), None, 'what is stored')


def check_nan_json(store):
    store.python.set('k', '[NaN, -Infinity]')
    same(store.get('k'), (HIT, b'[NaN, -Infinity]'))
    store.set('k', b'[NaN]', '--json')
    same(store.python.get('k')[0] != store.python.get('k')[0], True, 'a NaN')


def gzip_bodies():
    one, two = gzip.compress(b'first '), gzip.compress(b'second')
    good = {
        'two members': (one + two, b'first second'), 'zero padding': (one + b'\0' * 600, b'first '),
        'members with padding between': (one + b'\0\0' + two, b'first second'), 'empty member': (gzip.compress(b''), b''),
        'with a file name': (b'\x1f\x8b\x08\x08' + bytes(6) + b'name.txt\0' + gzip.compress(b'x')[10:], b'x'),
        'a flag on what is not gzip': (b'plain', b'plain'),
    }
    bad = {'cut off': one[:-3], 'a byte behind': one + b'x', 'wrong checksum': one[:-8] + bytes([one[-8] ^ 1]) + one[-7:]}
    for name, (body, wanted) in good.items():
        def check(store, body=body, wanted=wanted):
            store.put('k', body, {'compressed': 'true'})
            same(store.get('k'), (HIT, wanted))
        yield 'gzip body: ' + name, check
    for name, body in bad.items():
        def check(store, body=body):
            store.put('k', body, {'compressed': 'true'})
            same(store.command('get', 'k')[0], ERROR, 'exit status')
            same(store.body('k'), body, 'what is stored')
        yield 'damaged gzip body: ' + name, check


def expiries():
    now = time.time
    live = {
        'fraction': lambda: '%.6f' % (now() + 3600), 'no fraction': lambda: '%d' % (now() + 3600),
        'exponent': lambda: '%e' % (now() + 36000), 'blanks around': lambda: ' %f ' % (now() + 3600),
        'plus sign': lambda: '+%f' % (now() + 3600),
        'inf': lambda: 'inf', 'Infinity': lambda: 'Infinity', 'overflow': lambda: '1e400',
    }
    expired = {'a second ago': lambda: str(now() - 1), 'zero': lambda: '0', 'negative': lambda: '-1.5',
               '-inf': lambda: '-inf', 'long ago, exponent': lambda: '1e3'}
    refused = {name: (lambda name=name: name) for name in
               ('nan', '-NaN', 'tomorrow', '12,5', '0x7fffffff', '1__0', '2026-01-01T00:00:00Z', '99999999999s')}
    # Python's float() would take it; nobody writes it, and it is not guessed at.
    refused['underscores'] = lambda: '{:_}'.format(int(now()) + 3600)
    for name, text in live.items():
        def check(store, text=text):
            store.put('k', b'v', {'expires_at': text()})
            same(store.get('k'), (HIT, b'v'))
        yield 'expires_at, served: ' + name, check
    for name, text in expired.items():
        def check(store, text=text):
            store.put('k', b'v', {'expires_at': text()})
            same(store.get('k'), (MISS, b''))
            same(store.head('k'), None, 'what is stored')
        yield 'expires_at, expired and deleted: ' + name, check
    for name, text in refused.items():
        def check(store, text=text):
            store.put('k', b'v', {'expires_at': text()})
            same(store.get('k'), (MISS, b''))
            same(store.body('k'), b'v', 'what is stored')
        yield 'expires_at, neither served nor deleted: ' + name, check


def check_names(store):
    """With a dash, or with capitals: the same name."""
    for name in ('expires-at', 'Expires_At', 'EXPIRES-AT'):
        store.put('k', b'v', {name: '1.5'})
        same(store.get('k'), (MISS, b''), name)


def check_one_name(store):
    """Written once, under the name that Python reads; some stores give it back with a hyphen."""
    store.set('k', b'v', '--ttl', '90s')
    names = [name for name in store.head('k')['Metadata'] if name.lower().replace('-', '_') == 'expires_at']
    same(len(names), 1, 'names of expires_at in %r' % names)


def check_ttl_from_cpp(store):
    for text, seconds in (('90s', 90), ('15m', 900), ('1h', 3600), ('7d', 604800), ('120', 120), ('90.5', 90.5)):
        before = time.time()
        store.set('k', b'v', '--ttl', text)
        stored = store.metadata('k', 'expires_at')
        # Ten seconds for clocks: the store tells its own to the second only.
        assert abs(float(stored) - before - seconds) < 10 + time.time() - before, (text, stored, before)
        assert abs(unix_time(store.stat('k')['expires_at']) - float(stored)) < 1.01, store.stat('k')


def check_ttl_from_cpp_runs_out(store):
    store.set('k', b'v', '--ttl', '1')
    deadline = float(store.metadata('k', 'expires_at'))
    while time.time() <= deadline:
        time.sleep(0.1)
    same(store.python.get('k'), None, 'Python get')
    same(store.head('k'), None, 'what is stored')


def check_ttl_from_python_runs_out(store):
    store.python.set('k', {'a': 1}, 3600, True)
    same(store.get('k'), (HIT, b'{"a": 1}'))
    store.python.set('k', {'a': 1}, -1, True)
    same(store.get('k'), (MISS, b''))
    same(store.head('k'), None, 'what is stored')


def check_no_ttl(store):
    store.python.set('k', 'v')
    same(store.get('k'), (HIT, b'v'))
    same(store.stat('k').get('expires_at'), None, 'expires_at in stat')


def check_replaced(store):
    """A new entry takes nothing over from the old one."""
    store.set('k', b'[1]', '--ttl', '1h', '--gzip', '--json')
    store.python.set('k', 'from Python')
    same(store.get('k'), (HIT, b'from Python'))
    store.python.set('k', 'old', 3600, True)
    store.set('k', b'new')
    same(store.python.get('k'), 'new')
    same(store.metadata('k', 'compressed'), None, 'metadata compressed')


def check_missing(store):
    store.python.delete('k')
    same(store.get('k'), (MISS, b''), 'get')
    same(store.command('stat', 'k')[0], MISS, 'stat')
    same(store.command('rm', 'k')[0], HIT, 'rm')
    same(store.python.get('k'), None, 'Python get')


def check_remove(store):
    store.python.set('k', 'v')
    same(store.command('rm', 'k')[0], HIT, 'rm')
    same(store.head('k'), None, 'what is stored')
    store.set('k', b'v')
    store.python.delete('k')
    same(store.get('k'), (MISS, b''), 'get')


def streams():
    """More than one part; sent and read without either side knowing the length before."""
    contents = {'noise': noise(STREAM_BYTES), 'text': b'a line of text that gzip likes\n' * (STREAM_BYTES // 31),
                'empty': b''}
    for name, body in contents.items():
        for compress in (False, True):
            tail = name + (', gzip' if compress else '')

            def upward(store, body=body, compress=compress):
                store.set('s', body, '--bytes', '--ttl', '1h', *(('--gzip',) if compress else ()))
                same(b''.join(store.python.get_stream('s')), body, 'Python get_stream')
                assert not compress or not body or body[:1] != b'a' or store.head('s')['ContentLength'] < len(body) // 10
            yield 'stream, C++ to Python: ' + tail, upward

            def downward(store, body=body, compress=compress):
                # The class flags the stream without compressing it.
                store.python.set('s', OneWay(body), 3600, compress)
                same(store.get('s'), (HIT, body), 'get')
            yield 'stream, Python to C++: ' + name + (', flagged compressed' if compress else ''), downward

    def precompressed(store):
        store.python.set('s', OneWay(gzip.compress(contents['text'], 1)), 3600, True)
        same(store.get('s'), (HIT, contents['text']), 'get')
    yield 'stream, Python to C++: a gzip file, flagged compressed', precompressed


KEYS = ['plain', 'a b', ' lead', 'trail ', 'a+b', '100%', '%2F', '%zz', 'a?b=c', 'a#b', 'a&b=c;d', 'a//b', '//', '/lead', 'trail/',
        '.', '..', './x', '../x', 'a/./b', 'a/../b', 'back\\slash', '"quo\'ted"', '<x>&amp;', 'a:b@c', '~tilde', '*', '[]{}|^`', '!$(),',
        '-dash', '--ttl', 'Žluťoučký', '日本語/キー', '🦀', 'e\u0301 is not \u00e9', '\u00a0\u2028', 'tab\there', 'line\nbreak', '\x01\x1f\x7f',
        'x' * 900, 'é' * 450]


def keys():
    for key in KEYS:
        def check(store, key=key):
            body = ('of ' + key).encode()
            store.python.set(key, body)
            same(store.get(key), (HIT, body), 'get of what Python set')
            store.python.delete(key)
            store.set(key, body[::-1], '--bytes')
            same(store.body(key), body[::-1], 'what Python finds')
            same(store.command('rm', '--', key)[0], HIT, 'rm')
            same(store.head(key), None, 'what is stored')
        yield 'key %s' % brief(key), check


def check_list(store):
    names = [key for key in KEYS if all(ord(char) >= 32 and ord(char) != 127 for char in key)]
    for name in names:
        store.python.set('list/' + name, 'v', 3600)
    try:
        status, out, errors = store.command('ls', '--json', 'list/')
        same(status, HIT, 'exit status: %r' % errors)
        listed = sorted(json.loads(line)['key'] for line in out.splitlines())
        same(listed, sorted('list/' + name for name in names), 'keys')
    finally:
        for name in names:
            store.python.delete('list/' + name)


def checks():
    plain = [(name[len('check_'):].replace('_', ' '), function)
             for name, function in globals().items() if name.startswith('check_')]
    return [*python_to_cpp(), *cpp_to_python(), *plain, *gzip_bodies(), *expiries(), *streams(), *keys()]


def main():
    store = Store(sys.argv[1] if len(sys.argv) > 1 else 'build/s3cache')
    passed = failed = 0
    try:
        for name, check in checks():
            try:
                check(store)
            except Exception as error:  # whatever a check ends with, the others still run
                failed += 1
                print('FAIL  %s: %s: %s' % (name, type(error).__name__, error), flush=True)
            else:
                passed += 1
                print('ok    ' + name, flush=True)
    finally:
        store.clean()
    print('%d passed, %d failed' % (passed, failed))
    return 1 if failed or not passed else 0


if __name__ == '__main__':
    sys.exit(main())
