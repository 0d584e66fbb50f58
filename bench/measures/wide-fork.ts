/** Twenty forks of one instance at once, and what they take of the host's memory. */
import { join } from 'node:path'
import { ApiClient } from '../../test/harness/api-client.ts'
import { TICKER } from '../../test/harness/busybox-image.ts'
import { rawColdBoot } from '../../test/harness/raw-cold-boot.ts'
import { BareQemu } from '../anchors/bare-qemu.ts'
import type { Bench } from '../bench.ts'
import { change, makeOverlay, timed } from '../both-sides.ts'
import { atMostAboveAnchor, atMostAndFaster, type Measurement } from '../promise.ts'
import { MEMORY_MIB, proportionalBytes, type Sleeper, SleepingHouse } from '../sleeping-house.ts'

const CHILDREN = 20
const WORKING_SET_MIB = 200
/** Twenty cold boots without KVM take more than a minute. */
const RUNS = 3
const ANCHOR_RUNS = 1

export async function measureWideFork(bench: Bench): Promise<Measurement[]> {
  const { tell } = bench
  const runs = Math.min(bench.runs, RUNS)
  await using house = await SleepingHouse.open(bench, 'wide')
  tell(`a guest of 2 GiB that has written ${WORKING_SET_MIB} MiB`)
  const source = await house.create('source')
  await house.run(source, change(WORKING_SET_MIB))

  const forks: number[] = []
  const boots: number[] = []
  const memory: number[] = []
  const bareMemory: number[] = []
  for (let run = 0; run < runs; run += 1) {
    tell(`${CHILDREN} forks at once: run ${run + 1} of ${runs}`)
    const names = Array.from({ length: CHILDREN }, (_, child) => `child-${run}-${child}`)
    let children: Sleeper[] = []
    forks.push(
      await timed(async () => {
        children = await Promise.all(names.map((name) => fork(house, source, name)))
      }),
    )
    memory.push((await bytesOf(house, children)) / CHILDREN / 2 ** 20)
    bareMemory.push((await bareBytes(house, `waiting-${run}`)) / 2 ** 20)
    await house.forget(...children)
    if (run < ANCHOR_RUNS) boots.push(await coldBoots(house, tell))
  }
  return [
    {
      id: 'fork_20',
      what: `${CHILDREN} requests POST /instances/{id}/fork at once of a running guest of 2 GiB that has written ${WORKING_SET_MIB} MiB, until the agent of the last child has answered; the anchor boots ${CHILDREN} plain QEMUs with such a guest, two at a time, until a program of each has run`,
      ...{ unit: 'ms', target: atMostAndFaster(3000, 'ms'), ours: forks, anchor: boots },
    },
    {
      id: 'fork_20_memory',
      what: 'what a child takes of the host on average once all have answered: its QEMU, shim and network helper, each with its part of what it shares (PSS); the anchor is a plain QEMU with the same devices that has not run yet',
      ...{ unit: 'MiB', target: atMostAboveAnchor(15, 'MiB'), ours: memory, anchor: bareMemory },
    },
  ]
}

/** Each over a connection of its own, so that none waits for another's answer. */
async function fork({ daemon }: SleepingHouse, source: Sleeper, name: string): Promise<Sleeper> {
  using client = new ApiClient(daemon.socket)
  return await client.post<Sleeper>(`/instances/${source.name}/fork`, { name, from_running: true, target_state: 'Running' })
}

async function bytesOf(house: SleepingHouse, children: readonly Sleeper[]): Promise<number> {
  const processes = (await Promise.all(children.map((child) => house.processesOf(child)))).flat()
  const each = await Promise.all(processes.map(proportionalBytes))
  return each.reduce((sum, bytes) => sum + bytes, 0)
}

async function bareBytes(house: SleepingHouse, name: string): Promise<number> {
  const dir = await house.place(name)
  const overlay = join(dir, 'overlay')
  await makeOverlay(overlay)
  await using vm = await BareQemu.start({ ...house.machine, dir, disks: house.disksOver(overlay), isIncoming: true })
  return await proportionalBytes(vm.pid)
}

async function coldBoots(house: SleepingHouse, tell: Bench['tell']): Promise<number> {
  tell(`${CHILDREN} cold boots`)
  const { rootfs, machine } = house
  const dirs = Array.from({ length: CHILDREN }, (_, boot) => `boot-${boot}`).values()
  await using boots = new AsyncDisposableStack()
  return await timed(async () => {
    const bootSome = async (): Promise<void> => {
      for (const name of dirs) {
        const dir = join(await house.place('boots'), name)
        boots.use(
          await rawColdBoot({
            dir,
            rootfs,
            argv: TICKER,
            board: 'q35',
            acceleration: machine.acceleration,
            vcpus: 1,
            memoryMib: MEMORY_MIB,
          }),
        )
      }
    }
    await Promise.all([bootSome(), bootSome()])
  })
}
