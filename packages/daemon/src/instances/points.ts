/**
 * Points in an instance's life that forks go on from. Forks that wait for one source at the same time share one point: the source
 * stands still once, and what it holds in memory becomes one base for all of them. Those that want the disk alone share another, for
 * which no memory is written.
 */

import { rm } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { AppError } from '@dormouse/api/errors.ts'
import type { BaseRef } from '../hypervisors/hypervisor.ts'
import { createId } from '../lib/create-id.ts'
import type { Paths } from '../paths.ts'
import type { Instance, InstanceId } from './instance.ts'
import type { Story } from './instance-worker.ts'
import { type Point, takePoint } from './operations/take-point.ts'

export interface PointsUses {
  readonly paths: Pick<Paths, 'pointsDir'>
  /** Has the source's worker do it, in turn. Throws what admission says. */
  request(id: InstanceId, story: Story): Promise<void>
  /** Writes into the takers' rows what they stand on, before the source may go. */
  claim(point: Point, takers: readonly InstanceId[]): void
  /** Removes layers and bases that no row names. */
  sweep(point: Point): Promise<void>
}

/** A point in use. Dispose it when the rows that stand on it are written. */
export interface HeldPoint extends AsyncDisposable {
  readonly point: Point
}

/** Requests that came together are taken in one after the other, a millisecond or three apart. */
const GATHER_PAUSE_MS = 10
const GATHER_LIMIT_MS = 200

interface Wanted {
  readonly fromRunning: boolean
  readonly diskOnly: boolean
}

interface Gathering {
  readonly takers: InstanceId[]
  users: number
  readonly point: PromiseWithResolvers<Point>
  readonly dir: string
}

export class Points {
  readonly #uses: PointsUses
  /** Those whose moment has not come yet: who comes now joins. */
  readonly #gathering = new Map<string, Gathering>()
  readonly #held = new Set<Point>()

  constructor(uses: PointsUses) {
    this.#uses = uses
  }

  /** Does one that is in use stand on it? */
  standsOn(base: BaseRef): boolean {
    return [...this.#held].some(({ capture }) => capture?.base === base)
  }

  async take(source: Instance, taker: InstanceId, wanted: Wanted): Promise<HeldPoint> {
    const key = `${source.id} ${wanted.fromRunning} ${wanted.diskOnly}`
    const underWay = this.#gathering.get(key)
    const mine = underWay ?? this.#open(key)
    mine.takers.push(taker)
    mine.users++
    if (underWay === undefined) this.#begin(source.id, key, mine, wanted)
    const point = await mine.point.promise
    return {
      point,
      [Symbol.asyncDispose]: async () => {
        if (--mine.users === 0) await this.#release(mine.dir, point)
      },
    }
  }

  #open(key: string): Gathering {
    const gathering = { takers: [], users: 0, point: Promise.withResolvers<Point>(), dir: `${this.#uses.paths.pointsDir}/${createId()}` }
    this.#gathering.set(key, gathering)
    return gathering
  }

  #begin(id: InstanceId, key: string, gathering: Gathering, { fromRunning, diskOnly }: Wanted): void {
    const { takers, point, dir } = gathering
    const close = (): number => {
      if (this.#gathering.get(key) === gathering) this.#gathering.delete(key)
      return takers.length
    }
    const gathered = async (): Promise<number> => {
      const until = performance.now() + GATHER_LIMIT_MS
      // One that is alone does not wait for others. Of many that were asked for at once not all are here yet.
      for (let seen = 1; takers.length > seen && performance.now() < until; ) {
        seen = takers.length
        await sleep(GATHER_PAUSE_MS)
      }
      return close()
    }
    this.#uses
      .request(id, async (work) => {
        if (work.instance.state === 'Running' && !fromRunning) {
          throw new AppError('invalid_state', `The instance ${work.instance.name} cannot take fork now: it is running`, {
            hint: 'Ask for it with from_running, or put it into standby first',
          })
        }
        const taken = await takePoint(work, { dir, close: gathered, diskOnly })
        this.#held.add(taken)
        try {
          this.#uses.claim(taken, takers)
        } catch (error) {
          await this.#release(dir, taken)
          throw error
        }
        point.resolve(taken)
      })
      .catch((error: unknown) => {
        close()
        point.reject(error)
      })
  }

  async #release(dir: string, point: Point): Promise<void> {
    this.#held.delete(point)
    await rm(dir, { recursive: true, force: true })
    await point.fresh?.settle()
    await this.#uses.sweep(point)
  }
}
