import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { timeFactor } from './slow-host.ts'

const SLOWER = Math.min(timeFactor, 5)
/** Where a reading itself takes long, it is a part of the time between two as anywhere. */
const BETWEEN_MS = 4000 * SLOWER

/** Of a rate that any host can carry, what a slow one can: as much flows between two readings as anywhere. */
export const rateHere = (bytesPerSecond: number): number => bytesPerSecond / SLOWER

/** Bytes a second, by two readings some seconds apart, of what has been flowing for one. Time is what is measured here, not waited for. */
export async function paceOf(read: () => Promise<number>): Promise<number> {
  await sleep(1000)
  const [first, from] = [await read(), performance.now()]
  await sleep(BETWEEN_MS)
  return ((await read()) - first) / ((performance.now() - from) / 1000)
}

/**
 * That what flows is what a limit of `rate` bytes a second lets through, within a tenth. More is a limit that does not hold. Less may be a
 * host that had no time for either end: it is measured again then, three times in all.
 */
export async function assertPace(what: string, rate: number, read: () => Promise<number>): Promise<void> {
  const paces: number[] = []
  while (paces.length < 3) {
    const pace = await paceOf(read)
    paces.push(Math.round(pace))
    assert.ok(pace <= rate * 1.1, `${paces} bytes a second ${what}, not ${rate}`)
    if (pace >= rate * 0.9) return
  }
  assert.fail(`${paces} bytes a second ${what}, not ${rate}`)
}
