import { setTimeout as sleep } from 'node:timers/promises'

/** Bytes a second, by two readings four seconds apart, of what has been flowing for one. Time is what is measured here, not waited for. */
export async function paceOf(read: () => Promise<number>): Promise<number> {
  await sleep(1000)
  const [first, from] = [await read(), performance.now()]
  await sleep(4000)
  return ((await read()) - first) / ((performance.now() - from) / 1000)
}
