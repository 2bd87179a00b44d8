// What the scripts share: the namespace they may use, and how they say what they saw.

import { PassThrough } from 'node:stream';

// From where the Makefile put the packages: modules are not looked for by NODE_PATH.
const modules = process.env.NODE_MODULES;
export const k8s = await import(`${modules}/@kubernetes/client-node/dist/index.js`);

export const namespace = process.argv[2];
// How long anything may take: slow machines run these scripts, too.
const patience = 60_000;

export const config = new k8s.KubeConfig();
config.loadFromDefault();

export function check(what, condition, seen) {
  if (!condition) {
    console.error(`FAILED: ${what}; saw ${JSON.stringify(seen)}`);
    process.exit(1);
  }
  console.log(`ok: ${what}`);
}

/** A promise that fails when nothing comes of it. */
export function within(what, promise) {
  const late = new Promise((_, refuse) => {
    setTimeout(() => refuse(new Error(`waited ${patience} ms in vain for ${what}`)), patience).unref();
  });
  return Promise.race([promise, late]);
}

/** A stream that keeps what is written to it, and tells when it holds `wanted`. */
export class Sink extends PassThrough {
  text = '';
  constructor() {
    super();
    this.on('data', (data) => {
      this.text += data;
      this.emit('more');
    });
  }
  async holds(wanted) {
    const look = async () => {
      while (!this.text.includes(wanted)) {
        await new Promise((next) => this.once('more', next));
      }
      return this.text;
    };
    return within(`${JSON.stringify(wanted)} in ${JSON.stringify(this.text)}`, look());
  }
}
