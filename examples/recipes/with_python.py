# The other half of with_python.cpp, with boto3 alone; the class S3Cache does the same.
import gzip
import json
import os
import sys
import time

import boto3

bucket, _, prefix = sys.argv[1].removeprefix('s3://').partition('/')
s3 = boto3.client('s3', endpoint_url=os.environ.get('AWS_ENDPOINT_URL'), region_name=os.environ.get('AWS_REGION', 'us-east-1'))

entry = s3.get_object(Bucket=bucket, Key=prefix + '/from/cpp')
names = {name.lower().replace('-', '_'): value for name, value in entry['Metadata'].items()}  # stores write them differently
body = entry['Body'].read()
if float(names.get('expires_at', 'inf')) > time.time():
    print('Python reads', json.loads(gzip.decompress(body) if names.get('compressed') == 'true' else body))

s3.put_object(Bucket=bucket, Key=prefix + '/from/python', Body=json.dumps([1, 2]), Metadata={'expires_at': str(time.time() + 3600)})
