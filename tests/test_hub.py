"""`gentok push` and `--model user/name` over real HTTP: a small hub on this machine that keeps what it is given.

It speaks the part of the hub's protocol that huggingface_hub uses: create, preupload, LFS batch and upload, commit, and
the listing and the files of a revision. What it does not know it answers with 404 and remembers.
"""
import base64, hashlib, json, os, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gentok import Recommender

tiny = ('--codebook-size 4 --levels 2 --tokenizer-epochs 1 --text-dim 6 --epochs 1 --d-model 16 --layers 1 --batch-size 32 '
        '--validate-every 1').split()
sha = '0123456789abcdef'*2 + '01234567'

class Hub(BaseHTTPRequestHandler):
    "Repositories as dictionaries: path -> bytes"
    protocol_version = 'HTTP/1.1'
    def log_message(self, *words): pass
    def body(self): return self.rfile.read(int(self.headers.get('Content-Length') or 0))
    def say(self, code, content=b'', **headers):
        if not isinstance(content, bytes): content, headers = json.dumps(content).encode(), dict(headers, Content_Type='application/json')
        self.send_response(code)
        for name, value in dict(headers, Content_Length=len(content)).items(): self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(content)
    def refuse(self):
        self.server.unknown.append(f'{self.command} {self.path}')
        self.say(404, dict(error='not found'), X_Error_Code='RepoNotFound')

    def do_POST(self):
        hub, path, asked, base = self.server, self.path.partition('?')[0], self.body(), f'http://{self.headers["Host"]}'
        if self.headers.get('Authorization') != 'Bearer hf_test': return self.say(401, dict(error='no token'))
        if path == '/api/repos/create':
            repo = json.loads(asked)
            name = f'{repo["organization"]}/{repo["name"]}'
            hub.repos.setdefault(name, {})
            return self.say(200, dict(url=f'{base}/{name}', name=name, id=name))
        if path == '/api/validate-yaml': return self.say(200, dict(errors=[], warnings=[]))
        if path.endswith('.git/info/lfs/objects/batch'): return self.say(200, dict(objects=[
            dict(o, actions=dict(upload=dict(href=f'{base}/lfs/{o["oid"]}'))) for o in json.loads(asked)['objects']]))
        name, _, what = path.removeprefix('/api/models/').partition('/preupload/')
        if what: return self.say(200, dict(files=[dict(path=f['path'], shouldIgnore=False,
            uploadMode='lfs' if f['path'].endswith('.safetensors') else 'regular') for f in json.loads(asked)['files']]))
        name, _, what = path.removeprefix('/api/models/').partition('/commit/')
        if what and name in hub.repos:
            for line in map(json.loads, asked.decode().splitlines()):
                v = line['value']
                if line['key'] == 'file': hub.repos[name][v['path']] = base64.b64decode(v['content'])
                if line['key'] == 'lfsFile': hub.repos[name][v['path']] = hub.large[v['oid']]
            return self.say(200, dict(commitUrl=f'{base}/{name}/commit/{sha}', commitOid=sha, success=True))
        self.refuse()

    def do_PUT(self):
        oid, content = self.path.rpartition('/')[2], self.body()
        if hashlib.sha256(content).hexdigest() != oid: return self.say(400)
        self.server.large[oid] = content
        self.say(200)

    def do_GET(self):
        hub, path = self.server, self.path.partition('?')[0]
        name = next((r for r in hub.repos if path.startswith((f'/{r}/', f'/api/models/{r}'))), None)
        if name is None: return self.refuse()
        files, rest = hub.repos[name], path.partition(name)[2]
        if path.startswith('/api/') and (not rest or rest.startswith('/revision/')): return self.say(200, dict(
            id=name, modelId=name, sha=sha, private=False, tags=[], downloads=0, likes=0, siblings=[dict(rfilename=f) for f in sorted(files)]))
        if path.startswith('/api/') and rest.startswith('/tree/'): return self.say(200, [
            dict(type='file', path=f, size=len(b), oid=hashlib.sha1(b).hexdigest()) for f, b in sorted(files.items())])
        file = rest.removeprefix('/resolve/').partition('/')[2]
        if rest.startswith('/resolve/') and file in files: return self.say(
            200, files[file], ETag=f'"{hashlib.sha1(files[file]).hexdigest()}"', X_Repo_Commit=sha)
        if rest.startswith('/resolve/'): return self.say(404, b'', X_Error_Code='EntryNotFound', X_Repo_Commit=sha)
        self.refuse()
    do_HEAD = do_GET

@pytest.fixture(scope='module')
def hub():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.repos, server.large, server.unknown = {}, {}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()

@pytest.fixture(scope='module')
def here(tmp_path_factory):
    "A small shop and a model of it"
    from gentok.cli import main
    folder = tmp_path_factory.mktemp('hub')
    (folder/'shop').mkdir()
    (folder/'shop'/'items.csv').write_text('item,text\n' + ''.join(f'{10 + n},tile {n % 4} of row {n//4}\n' for n in range(12)))
    (folder/'shop'/'interactions.csv').write_text('user,item,time\n' + ''.join(f'u{u},{10 + (u + 5*t) % 12},{t}\n' for u in range(30) for t in range(5)))
    assert main(['run', 'tiger', str(folder/'shop'), '--out', str(folder/'m'), *tiny]) == 0
    return folder

def gentok(hub, here, *words, token='hf_test'):
    "A command in a process of its own, whose hub is ours; what it said, its exit status"
    own = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'HUGGING'))}
    own |= dict(HF_ENDPOINT=f'http://127.0.0.1:{hub.server_address[1]}', HF_HOME=str(here/'cache'), HF_HUB_DISABLE_XET='1',
                HF_HUB_DISABLE_TELEMETRY='1', NO_PROXY='127.0.0.1', no_proxy='127.0.0.1', OMP_NUM_THREADS='1', **dict(HF_TOKEN=token) if token else {})
    done = subprocess.run([sys.executable, '-m', 'gentok.cli', *map(str, words)], env=own, capture_output=True, text=True, timeout=300, cwd=here)
    assert 'Traceback' not in done.stderr, done.stderr
    return done.stdout, done.stderr, done.returncode

def test_a_model_goes_to_the_hub_and_comes_back(hub, here):
    out, err, code = gentok(hub, here, 'push', '--model', 'm', 'ann/crockery')
    assert code == 0 and '--model ann/crockery' in out, err
    kept = hub.repos['ann/crockery']
    assert {'README.md', 'model.safetensors', 'items.json', 'config.json', 'pipeline/tokenizer/model.safetensors'} <= set(kept), sorted(kept)
    assert kept['model.safetensors'] == (here/'m'/'model.safetensors').read_bytes()  # through the LFS road
    assert b'from_pretrained' in kept['README.md'] and hub.large
    there, err, code = gentok(hub, here, 'recommend', '--history', '10,15', '-k', '3', '--json', '--model', 'ann/crockery', token=None)
    mine = Recommender.from_pretrained(here/'m').recommend([['10', '15']], k=3)
    assert code == 0 and [i['id'] for i in json.loads(there)['items']] == mine['id'].to_list(), (there, err)
    assert hub.unknown == []

def test_what_the_hub_refuses_is_one_sentence(hub, here):
    out, err, code = gentok(hub, here, 'push', '--model', 'm', 'ann/other', token='hf_wrong')
    assert code == 2 and 'was not pushed' in err and 'hf auth login' in err and 'ann/other' not in hub.repos, err
    out, err, code = gentok(hub, here, 'recommend', '--history', '10', '--model', 'nobody/nothing', token=None)
    assert code == 2 and 'no model of the hub that can be reached' in err, err
