/**
 * A TAP of no bridge, for a machine of ours that is to have a card. Firecracker opens it by its name, so it cannot be one that goes with its
 * last user; what a daemon left that died is taken away by the next one that makes one.
 */
import { createHash, randomBytes } from 'node:crypto'
import { readdir, stat } from 'node:fs/promises'
import { AppError } from '@dormouse/api/errors.ts'
import { runCommand } from '../../host/run-command.ts'
import type { Step } from '../../lib/step.ts'

const TUN = '/dev/net/tun'

/** Firecracker opens the device itself, as `user`; without one, as whoever the daemon is. Throws `dependency_missing` with what to do. */
export async function assertTunOpen(user: object | undefined): Promise<void> {
  const facts = await stat(TUN).catch(() => undefined)
  if (facts !== undefined && (user === undefined || (facts.mode & 0o006) === 0o006)) return
  throw new AppError(
    'dependency_missing',
    facts === undefined ? `${TUN} is missing` : `${TUN} is for root alone, and Firecracker is not root`,
    {
      hint: facts === undefined ? 'Load the kernel module: modprobe tun' : `Give it the mode that udev gives it: chmod 0666 ${TUN}`,
    },
  )
}

const inUse = new Set<string>()
const REMOVE_LIMIT_MS = 10_000

export class GoldenTap implements AsyncDisposable {
  readonly name: string
  readonly #log: Step['log']

  private constructor(name: string, log: Step['log']) {
    this.name = name
    this.#log = log
  }

  /** `owner` may open it; `workDir` tells daemons apart. */
  static async make(workDir: string, owner: number | undefined, step: Step): Promise<GoldenTap> {
    const prefix = `dmg${createHash('sha256').update(workDir).digest('hex').slice(0, 4)}`
    const name = `${prefix}${randomBytes(3).toString('hex')}`
    for (const left of await readdir('/sys/class/net')) if (left.startsWith(prefix) && !inUse.has(left)) await remove(left, step)
    inUse.add(name)
    try {
      await runCommand(
        ['ip', 'tuntap', 'add', 'dev', name, 'mode', 'tap', 'vnet_hdr', ...(owner === undefined ? [] : ['user', `${owner}`])],
        {
          step,
        },
      )
    } catch (cause) {
      inUse.delete(name)
      throw new AppError('internal_error', 'There is no TAP for a golden boot', { cause })
    }
    return new GoldenTap(name, step.log)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const step = { signal: AbortSignal.timeout(REMOVE_LIMIT_MS), log: this.#log }
    await remove(this.name, step).catch((error) => this.#log.warn({ err: error, tap: this.name }, 'the TAP of a golden boot was left'))
    inUse.delete(this.name)
  }
}

const remove = (name: string, step: Step): Promise<unknown> => runCommand(['ip', 'link', 'delete', 'dev', name], { step })
