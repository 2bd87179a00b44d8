// The JavaScript client's streams: exec, attach, port forwarding, logs.

import { PassThrough } from 'node:stream';

import { Sink, check, config, k8s, namespace, within } from './common.mjs';

async function exec(command, input) {
  const [out, err] = [new Sink(), new Sink()];
  const run = new Promise((done, refuse) => {
    new k8s.Exec(config).exec(namespace, 'shell', 'c', command, out, err, input, false, done).catch(refuse);
  });
  const status = await within(`the end of ${command}`, run);
  return { out: out.text, err: err.text, status };
}

const plain = await exec(['sh', '-c', 'echo out; echo err >&2; exit 5'], null);
check('exec keeps the outputs apart', plain.out === 'out\n' && plain.err === 'err\n', plain);
const code = plain.status.details?.causes?.find((c) => c.reason === 'ExitCode')?.message;
check('the exit code arrives', plain.status.status === 'Failure' && code === '5', plain.status);

const input = new PassThrough();
const fed = exec(['sh', '-c', 'cat; echo end'], input);
input.write('to and fro\n');
input.end();
const answer = await fed;
check('the end of the input is an end of file', answer.out === 'to and fro\nend\n', answer);
check('success is said', answer.status.status === 'Success', answer.status);

const [out, typed] = [new Sink(), new PassThrough()];
const attached = await new k8s.Attach(config).attach(namespace, 'shell', 'c', out, null, typed, false);
typed.write('from JavaScript\n');
await out.holds('read from JavaScript\n');
check("attach reaches the container's process", true);
attached.close();

const [page, errors, request] = [new Sink(), new Sink(), new PassThrough()];
await new k8s.PortForward(config).portForward(namespace, 'web', [80], page, errors, request);
request.write('GET /version HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n');
const text = await page.holds('\r\n\r\n1\n');
check('a forwarded port answers', text.startsWith('HTTP/1.1 200'), text);
const [none, refused] = [new Sink(), new Sink()];
await new k8s.PortForward(config).portForward(namespace, 'web', [81], none, refused, new PassThrough());
await refused.holds('refused');
check('a closed port is told of', true);

const log = new Sink();
const reading = await new k8s.Log(config).log(namespace, 'counter', 'c', log, { follow: true });
await log.holds('line 10\n');
check('a log is followed', log.text.startsWith('line 0\nline 1\n'), log.text);
reading.abort();
process.exit(0);
