/** How many idle instances fit into the host's memory, running and asleep. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { TICKER } from '../../test/harness/busybox-image.ts'
import { rawColdBoot } from '../../test/harness/raw-cold-boot.ts'
import type { Bench } from '../bench.ts'
import { atMost, atMostTimesAnchor, type Measurement } from '../promise.ts'
import { proportionalBytes, type Sleeper, SleepingHouse } from '../sleeping-house.ts'

const RUNNING = 8
const SLEEPING = 50
const MEMORY_MIB = 512
const MIB = 2 ** 20

export async function measureDensity(bench: Bench): Promise<Measurement[]> {
  const { tell } = bench
  await using house = await SleepingHouse.open(bench, 'density')
  tell(`${RUNNING} idle instances of ${MEMORY_MIB} MiB`)
  const instances: Sleeper[] = []
  for (let count = 0; count < RUNNING; count += 1) instances.push(await house.create(`idle-${count}`, MEMORY_MIB))
  const running = await Promise.all(instances.map(async (one) => (await sum(await house.processesOf(one))) / MIB))
  const bare: number[] = []
  for (let boot = 0; boot < 2; boot += 1) {
    tell(`a plain QEMU with such a guest: ${boot + 1} of 2`)
    const dir = join(await house.place('boots'), `boot-${boot}`)
    const { acceleration } = house.machine
    await using vm = await rawColdBoot({
      dir,
      rootfs: house.rootfs,
      argv: TICKER,
      board: 'q35',
      acceleration,
      vcpus: 1,
      memoryMib: MEMORY_MIB,
    })
    bare.push((await proportionalBytes(vm.pid)) / MIB)
  }
  tell(`${SLEEPING} idle instances asleep`)
  const [first] = instances
  if (first === undefined) throw new Error('No instance runs')
  await house.ask(first, 'standby', {})
  await house.consolidated(first)
  const before = await resident(house.daemon.pid)
  for (let count = 0; count < SLEEPING; count += 1) {
    await house.ask(first, 'fork', { name: `asleep-${count}`, target_state: 'Standby' })
  }
  const each = Math.max(0, (await resident(house.daemon.pid)) - before) / SLEEPING / MIB
  const perGib = (figures: readonly number[]): number =>
    Math.floor(1024 / (figures.reduce((total, one) => total + one, 0) / figures.length))
  tell(`a GiB holds ${perGib(running)} that run, ${perGib(bare)} plain QEMUs, and ${each === 0 ? 'any number' : perGib([each])} that sleep`)
  return [
    {
      id: 'density_running',
      what: `what an idle instance of ${MEMORY_MIB} MiB takes of the host, one of ${RUNNING}: its QEMU, shim and network helper, each with its part of what it shares (PSS); the anchor is a plain QEMU that was booted with the same guest`,
      ...{ unit: 'MiB', target: atMostTimesAnchor(0.75), ours: running, anchor: bare },
    },
    {
      id: 'density_sleeping',
      what: `what an instance that sleeps takes of the host's memory, one of ${SLEEPING}: by how much the daemon has grown with each, since nothing else of it is there`,
      ...{ unit: 'MiB', target: atMost(1, 'MiB'), ours: [each] },
    },
  ]
}

async function sum(pids: readonly number[]): Promise<number> {
  const each = await Promise.all(pids.map(proportionalBytes))
  return each.reduce((total, bytes) => total + bytes, 0)
}

const resident = async (pid: number): Promise<number> =>
  Number(/^VmRSS:\s+(\d+) kB$/m.exec(await readFile(`/proc/${pid}/status`, 'latin1'))?.[1] ?? 0) * 1024
