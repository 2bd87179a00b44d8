// An informer of the JavaScript client: what is there, what comes, changes and goes.

import { check, config, k8s, namespace, within } from './common.mjs';

const core = config.makeApiClient(k8s.CoreV1Api);
const labels = { app: 'informed' };
const map = (name, data) => ({ metadata: { name, labels }, data });

await core.createNamespacedConfigMap({ namespace, body: map('before', { a: '1' }) });
const list = () => core.listNamespacedConfigMap({ namespace, labelSelector: 'app=informed' });
const informer = k8s.makeInformer(config, `/api/v1/namespaces/${namespace}/configmaps`, list, 'app=informed');
const seen = [];
const happened = (wanted) =>
  within(
    `${wanted} after ${seen}`,
    (async () => {
      while (!seen.includes(wanted)) {
        await new Promise((next) => setTimeout(next, 20));
      }
    })(),
  );
for (const kind of ['add', 'update', 'delete']) {
  informer.on(kind, (object) => seen.push(`${kind} ${object.metadata.name}`));
}
informer.on('error', (error) => console.error(`the informer failed: ${error}`));
await informer.start();
await happened('add before');
check('what is there is told', true);
await core.createNamespacedConfigMap({ namespace, body: map('after', { a: '1' }) });
await happened('add after');
check('what comes is told', informer.get('after', namespace)?.data.a === '1', seen);
const patch = [{ op: 'replace', path: '/data/a', value: '2' }];
await core.patchNamespacedConfigMap({ name: 'after', namespace, body: patch });
await happened('update after');
check('a change is told', informer.get('after', namespace)?.data.a === '2', seen);
await core.deleteNamespacedConfigMap({ name: 'before', namespace });
await happened('delete before');
check('what goes is told', informer.list().map((o) => o.metadata.name).join() === 'after', informer.list());
await informer.stop();

try {
  await core.readNamespacedConfigMap({ name: 'before', namespace });
  check('what is gone is not found', false);
} catch (error) {
  check('what is gone is not found', error.code === 404, error.code);
}
process.exit(0);
