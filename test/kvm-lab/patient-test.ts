/** `node:test`, with the limits of its tests as long as longer-limits.ts makes them. */
import test from 'node:test'
import { longer } from './longer-limits.ts'

export { after, afterEach, before, beforeEach, mock } from 'node:test'

const patient = <F extends typeof test.test | typeof test.suite>(own: F): F =>
  new Proxy(own, { apply: (target, self, args) => Reflect.apply(target, self, args.map(withTime)) })

const withTime = (argument: unknown): unknown =>
  typeof argument === 'object' && argument !== null && 'timeout' in argument && typeof argument.timeout === 'number'
    ? { ...argument, timeout: longer(argument.timeout) }
    : argument

const own = patient(test.test)
const ownSuite = patient(test.suite)

export { own as default, own as it, own as test, ownSuite as describe, ownSuite as suite }
