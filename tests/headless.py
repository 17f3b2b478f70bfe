"A page in headless Chromium, spoken to over a pipe: window sizes, questions, screenshots, and what went wrong."
import base64, json, os, shutil, subprocess
from pathlib import Path

flags = ('--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run --disable-background-networking '
         '--disable-component-update --disable-sync --disable-extensions --hide-scrollbars --remote-debugging-pipe').split()

def browser() -> str|None:
    "The installed Chromium, if there is one."
    return next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)

class Page:
    "One tab; `errors` collects console errors and exceptions, `requests` what was asked from elsewhere."
    def __init__(self, profile: Path):
        self.errors, self.requests, self._n, self._buffer, self._events = [], [], 0, b'', []
        (child_in, self._out), (self._in, child_out) = os.pipe(), os.pipe()
        def plumb():
            a, b = os.dup(child_in), os.dup(child_out)  # clear of 3 and 4
            os.dup2(a, 3); os.dup2(b, 4)
        self.process = subprocess.Popen([browser(), *flags, f'--user-data-dir={profile}', 'about:blank'], preexec_fn=plumb,
                                        close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(child_in); os.close(child_out)
        self._session = None
        targets = self.send('Target.getTargets')['targetInfos']
        tab = next(t['targetId'] for t in targets if t['type'] == 'page')
        self._session = self.send('Target.attachToTarget', targetId=tab, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'): self.send(f'{domain}.enable')

    def _read(self) -> dict:
        while b'\0' not in self._buffer:
            piece = os.read(self._in, 1 << 20)
            if not piece: raise RuntimeError('the browser ended')
            self._buffer += piece
        line, self._buffer = self._buffer.split(b'\0', 1)
        return json.loads(line)

    def _note(self, event: dict):
        method, p = event.get('method'), event.get('params', {})
        if method == 'Runtime.exceptionThrown': self.errors.append(str(p['exceptionDetails']))
        if method == 'Runtime.consoleAPICalled' and p['type'] in ('error', 'warning'): self.errors.append(str(p['args']))
        if method == 'Log.entryAdded' and p['entry']['level'] in ('error', 'warning'): self.errors.append(p['entry']['text'])
        if method == 'Network.requestWillBeSent' and not p['request']['url'].startswith(('data:', 'file:', 'about:')):
            self.requests.append(p['request']['url'])

    def send(self, method: str, **params) -> dict:
        "A command of the DevTools protocol, and its answer."
        self._n += 1
        message = dict(id=self._n, method=method, params=params)
        if self._session: message['sessionId'] = self._session
        os.write(self._out, json.dumps(message).encode() + b'\0')
        while (answer := self._read()).get('id') != self._n:
            self._note(answer); self._events.append(answer.get('method'))
        if 'error' in answer: raise RuntimeError(f'{method}: {answer["error"]}')
        return answer['result']

    def open(self, path: Path, width: int, height: int = 900, dark: bool = False):
        "Load a file in a window of this size, to the end."
        self.send('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.send('Emulation.setEmulatedMedia', features=[dict(name='prefers-color-scheme', value='dark' if dark else 'light')])
        self._events.clear()
        self.send('Page.navigate', url=Path(path).resolve().as_uri())
        while 'Page.loadEventFired' not in self._events:
            event = self._read(); self._note(event); self._events.append(event.get('method'))

    def ask(self, script: str):
        "The value of a JavaScript expression in the page."
        answer = self.send('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
        if 'exceptionDetails' in answer: raise RuntimeError(str(answer['exceptionDetails']))
        return answer['result'].get('value')

    def picture(self, path: Path, whole: bool = True):
        "A screenshot as PNG."
        shot = self.send('Page.captureScreenshot', format='png', captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(shot['data']))

    def close(self):
        "End the browser that this page started."
        try: self._session = None; self.send('Browser.close')
        except (RuntimeError, OSError): pass
        for pipe in (self._in, self._out): os.close(pipe)
        try: self.process.wait(20)
        except subprocess.TimeoutExpired: self.process.kill()
