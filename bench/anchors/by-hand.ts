/** What stands beside the instances of a driver: the same done by hand with its VMM, by the means that this VMM has of its own. */
import type { GuestClient } from '../../packages/daemon/src/guest/guest-client.ts'
import type { DaemonProcess } from '../../test/harness/daemon-process.ts'
import type { Sleeper, SleepingHouse } from '../sleeping-house.ts'

export interface ByHand {
  /** In the words of the tables. */
  readonly says: {
    /** To the same end as a create. */
    readonly boot: string
    readonly nap: string
    /** Of each way; their order is that of the figures. */
    readonly ways: readonly Way[]
    readonly fork: string
    readonly snapshot: string
  }
  /** From its start until the agent has answered that a second program of the image ran. `dir` is made. */
  boot(daemon: DaemonProcess, options: BareBoot): Promise<Booted>
  sleeper(house: SleepingHouse): Promise<BareSleeper>
  source(house: SleepingHouse): Promise<BareSource>
}

/** How its VMM can be told to go on from what it has saved. */
export interface Way {
  /** What ids of figures end with; empty for what it does when it is told nothing. */
  readonly suffix: '' | `_${string}`
  readonly restore: string
}

export interface BareBoot {
  readonly dir: string
  /** The image's root disk. */
  readonly rootfs: string
  /** The image's program. */
  readonly argv: readonly string[]
  readonly memoryMib: number
}

export interface Booted extends AsyncDisposable {
  readonly readyMs: number
  readonly guest: GuestClient
}

/** Plain VMs that wake and nap beside an instance. */
export interface BareSleeper extends AsyncDisposable {
  /** `sleeper` is asleep. */
  life(sleeper: Sleeper): Promise<BareLife>
}

export interface BareLife {
  /** By each way. */
  readonly restoreMs: readonly number[]
  /** With a program's 16 MiB written anew since it woke. */
  readonly napMs: number
}

/** A plain VM that runs. */
export interface BareSource extends AsyncDisposable {
  run(command: readonly string[]): Promise<void>
  /** Until another VM has its memory and another name, and its agent has answered: by each way. */
  fork(name: string): Promise<readonly number[]>
  /** Until all is flushed and it goes on. */
  snapshot(): Promise<number>
}
