"""Who are we? The chain of credentials beside botocore's, case by case: each profile below, selected in each way, with each
set of variables, must lead both to the same source and the same keys, or both to an error.

    CXX=g++ python3 tests/python/chain.py [FOLDER FOR THE PROGRAM]

Compiles tests/python/chain.cpp. Nothing goes over a network but for a container's agent on the loopback, which botocore
asks. Prints the cases that differ and 'N passed, N failed'; exit status 1 if one failed.
"""

import http.server
import itertools
import os
import subprocess
import sys
import tempfile
import threading

import botocore.credentials
import botocore.exceptions
import botocore.session

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
KEYS = 'aws_access_key_id = %s\naws_secret_access_key = s\n'
ROLE = 'role_arn = arn:aws:iam::1:role/r\n'
AGENT = '{"AccessKeyId":"CONTAINER","SecretAccessKey":"s","Token":"t","Expiration":"2100-01-01T00:00:00Z"}'
PROCESS = """credential_process = echo '{"Version": 1, "AccessKeyId": "PROCESS", "SecretAccessKey": "s"}'\n"""

# What the profile says: in the config file, in the credentials file.
PROFILES = {
    'nothing': ('region = r\n', ''),
    'keys': ('', KEYS % 'SHARED'),
    'keys in config': (KEYS % 'CONFIG', ''),
    'keys in both': (KEYS % 'CONFIG', KEYS % 'SHARED'),
    'secret in the other file': ('aws_access_key_id = CONFIG\n', 'aws_secret_access_key = s\n'),
    'key alone': ('', 'aws_access_key_id = SHARED\n'),
    'secret alone': ('', 'aws_secret_access_key = s\n'),
    'role': (ROLE + 'source_profile = base\n', ''),
    'role and keys': (ROLE + 'source_profile = base\n', KEYS % 'SHARED'),
    'role of its own keys': (ROLE + 'source_profile = %(name)s\n', KEYS % 'SHARED'),
    'role of its own': (ROLE + 'source_profile = %(name)s\n', ''),
    'role through a role': (ROLE + 'source_profile = middle\n', ''),
    'role of keys beside a role': (ROLE + 'source_profile = mixed\n', ''),
    'role in a circle': (ROLE + 'source_profile = circle\n', ''),
    'role of nobody': (ROLE + 'source_profile = nobody\n', ''),
    'role of an empty profile': (ROLE + 'source_profile = empty\n', ''),
    'role of a process': (ROLE + 'source_profile = helper\n', ''),
    'role of a web identity': (ROLE + 'source_profile = web\n', ''),
    'role of the environment': (ROLE + 'credential_source = Environment\n', ''),
    'role of a container': (ROLE + 'credential_source = EcsContainer\n', ''),
    'role of an instance': (ROLE + 'credential_source = Ec2InstanceMetadata\n', ''),
    'role of something else': (ROLE + 'credential_source = Elsewhere\n', ''),
    'role without a source': (ROLE, ''),
    'role of two sources': (ROLE + 'source_profile = base\ncredential_source = Environment\n', ''),
    'source without a role': ('source_profile = base\n', ''),
    'web identity': (ROLE + 'web_identity_token_file = %(folder)s/token\n', ''),
    'web identity and keys': (ROLE + 'web_identity_token_file = %(folder)s/token\n', KEYS % 'SHARED'),
    'web identity without a role': ('web_identity_token_file = %(folder)s/token\n', ''),
    'process': (PROCESS, ''),
    'process and keys in config': (PROCESS + KEYS % 'CONFIG', ''),
    'process and keys': (PROCESS, KEYS % 'SHARED'),
    'process that fails': ('credential_process = false\n', ''),
}
OTHERS = ('[profile base]\n' + KEYS % 'BASE' + '[profile middle]\n' + ROLE + 'source_profile = base\n'
          '[profile mixed]\n' + ROLE + 'source_profile = nobody\n' + KEYS % 'MIXED' +
          '[profile circle]\n' + ROLE + 'source_profile = %(name)s\n[profile empty]\nregion = r\n'
          '[profile helper]\n' + PROCESS + '[profile web]\n' + ROLE + 'web_identity_token_file = %(folder)s/token\n')

# How the profile is selected: its name, a variable that names it, whether code names it.
SELECTED = {'by nobody': ('default', None, False), 'by AWS_PROFILE': ('p', 'AWS_PROFILE', False),
            'by AWS_DEFAULT_PROFILE': ('p', 'AWS_DEFAULT_PROFILE', False), 'in code': ('p', None, True)}

VARIABLES = {
    'no variables': {},
    'keys': {'AWS_ACCESS_KEY_ID': 'ENV', 'AWS_SECRET_ACCESS_KEY': 's'},
    'key alone': {'AWS_ACCESS_KEY_ID': 'ENV'},
    'secret alone': {'AWS_SECRET_ACCESS_KEY': 's'},
    'empty': {'AWS_ACCESS_KEY_ID': '', 'AWS_SECRET_ACCESS_KEY': ''},
    'expiry that is none': {'AWS_ACCESS_KEY_ID': 'ENV', 'AWS_SECRET_ACCESS_KEY': 's', 'AWS_CREDENTIAL_EXPIRATION': 'soon'},
    'web identity': {'AWS_WEB_IDENTITY_TOKEN_FILE': '%(folder)s/token', 'AWS_ROLE_ARN': 'arn:aws:iam::1:role/pod'},
    'token alone': {'AWS_WEB_IDENTITY_TOKEN_FILE': '%(folder)s/token'},
    'empty token': {'AWS_WEB_IDENTITY_TOKEN_FILE': ''},
    'role alone': {'AWS_ROLE_ARN': 'arn:aws:iam::1:role/pod'},
    'empty role': {'AWS_ROLE_ARN': ''},
    'container': {'AWS_CONTAINER_CREDENTIALS_FULL_URI': '%(agent)s/container'},
}


class Agent(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(AGENT.encode())

    def log_message(self, *_):
        pass


def of_botocore(profile):
    """The source and its key, 'error' or 'none'. Keys of roles are fetched when they are needed, so theirs is not known."""
    try:
        session = botocore.session.Session(profile=profile)
        keys = botocore.credentials.create_credential_resolver(session).load_credentials()
    except Exception as error:  # of many kinds, not all of them botocore's own
        return 'error', type(error).__name__
    if keys is None:
        return 'none', ''
    return keys.method, '' if keys.method.startswith('assume-role') else keys.access_key


def of_this(program, profile, variables, folder):
    program.stdin.write('\t'.join([profile or ''] + ['%s=%s' % pair for pair in variables.items()]) + '\n')
    program.stdin.flush()
    source, key = program.stdout.readline().rstrip('\n').split('\t', 1)
    for begin, method in (('error', 'error'), ('environment', 'env'), ('container (', 'container-role'),
                          (folder + '/credentials, ', 'shared-credentials-file'), (folder + '/config, ', 'config-file')):
        if source.startswith(begin):
            if key.startswith('no credentials found'):
                return 'none', key
            return method, key
    if ': credential_process ' in source:
        return 'custom-process', key
    return 'assume-role' if ', role ' in source else 'assume-role-with-web-identity', ''


def write(folder, name, text):
    with open(os.path.join(folder, name), 'w') as file:
        file.write(text)


def compiled(folder):
    program = os.path.join(folder, 'chain')
    subprocess.run([os.environ.get('CXX', 'c++'), '-std=c++17', '-O0', '-I' + ROOT, os.path.join(ROOT, 'tests/python/chain.cpp'), '-o',
                    program, '-lcurl', '-lcrypto', '-lz', '-lpthread'], check=True)
    return program


def main():
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Agent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    passed = failed = 0
    with tempfile.TemporaryDirectory() as folder:
        program = compiled(sys.argv[1] if len(sys.argv) > 1 else folder)
        write(folder, 'token', 'jwt')
        for name in [name for name in os.environ if name.startswith('AWS_') or name.lower().endswith('_proxy')]:
            del os.environ[name]
        program = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        agent = 'http://127.0.0.1:%d' % server.server_port
        fixed = {'AWS_CONFIG_FILE': folder + '/config', 'AWS_SHARED_CREDENTIALS_FILE': folder + '/credentials',
                 'AWS_EC2_METADATA_DISABLED': 'true', 'AWS_REGION': 'us-east-1', 'AWS_DEFAULT_REGION': 'us-east-1', 'HOME': folder}
        for (kind, said), (how, (name, variable, in_code)) in itertools.product(PROFILES.items(), SELECTED.items()):
            known = {'name': name, 'folder': folder, 'agent': agent}
            heading = '[default]\n' if name == 'default' else '[profile p]\n'
            write(folder, 'config', heading + said[0] % known + OTHERS % known)
            write(folder, 'credentials', '[%s]\n' % name + said[1] % known)
            for extra, variables in VARIABLES.items():
                if variable == 'AWS_DEFAULT_PROFILE' and variables:
                    continue  # which differs from AWS_PROFILE by its name alone
                set_now = dict(fixed, **{key: value % known for key, value in variables.items()})
                if variable:
                    set_now[variable] = name
                os.environ.update(set_now)
                theirs = of_botocore(name if in_code else None)
                ours = of_this(program, name if in_code else None, set_now, folder)
                for key in set_now:
                    del os.environ[key]
                same = theirs[0] == ours[0] and (theirs[0] in ('error', 'none') or theirs[1] == ours[1])
                passed, failed = passed + same, failed + (not same)
                if not same:
                    print('FAILED: profile "%s" selected %s, %s: botocore %s, we %s' % (kind, how, extra, theirs, ours))
        program.stdin.close()
        program.wait()
    print('%d passed, %d failed' % (passed, failed))
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
