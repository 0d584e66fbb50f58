/** What each driver can do, as docs/drivers.md tells it, out of the drivers themselves. */
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import type { Capability } from '../packages/api/src/instance-states.ts'
import { assetsIn } from '../packages/daemon/src/config/assets.ts'
import { configOf } from '../packages/daemon/src/config/config.ts'
import { createHypervisors } from '../packages/daemon/src/hypervisor-set.ts'
import { FakeHypervisor } from '../packages/daemon/src/hypervisors/fake/fake.ts'
import type { Hypervisor } from '../packages/daemon/src/hypervisors/hypervisor.ts'
import { silentLogger } from '../packages/daemon/src/log.ts'
import { Paths } from '../packages/daemon/src/paths.ts'

export const DRIVERS_PAGE = resolve(import.meta.dirname, '../docs/drivers.md')
const BEGIN = '<!-- what each driver can do: node scripts/driver-table.ts -->'
const END = '<!-- end -->'

const WORDS: Readonly<Record<Capability, string>> = {
  pause: 'stands still and goes on',
  standby: 'sleeps and wakes',
  fork: 'is forked, in every state',
  snapshots: 'snapshots of memory and disk',
  disk_layers: 'disks of layers: copied without a copy of the disk',
  disk_hotplug: 'volumes come, go and grow while it runs',
  disk_limit: 'a rate of its disks that can be asked for',
  disk_limit_live: 'that rate changes while it runs',
  memory_hotplug: 'memory is added while it runs',
  gpu: "devices of the host's",
  fresh_boot: 'boots from the start on request',
}

/** The page with its table as it is now. Asks nothing of the host but the drivers what they are. */
export async function driversPage(): Promise<string> {
  const page = await readFile(DRIVERS_PAGE, 'utf8')
  const [from, to] = [page.indexOf(BEGIN), page.indexOf(END)]
  if (from < 0 || to < from) throw new Error(`docs/drivers.md has no place for the table: ${BEGIN} ... ${END}`)
  return `${page.slice(0, from)}${BEGIN}\n${await table()}\n${page.slice(to)}`
}

async function table(): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'drivers-'))
  await using stack = new AsyncDisposableStack()
  stack.defer(() => rm(dir, { recursive: true, force: true }))
  const settings = { DATA_DIR: join(dir, 'data'), RUN_DIR: join(dir, 'run'), CGROUPS: 'false' }
  const config = configOf(new Map(Object.entries(settings)))
  const uses = { config, log: silentLogger, paths: new Paths(config), assets: assetsIn(dir), isRoot: false, stack, workDir: dir }
  const { drivers } = createHypervisors({ ...uses, isNeeded: () => true })
  const all: readonly Hypervisor[] = [...drivers, new FakeHypervisor()]
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`
  return [
    line(['', ...all.map(({ name }) => `\`${name}\``)]),
    line(['---', ...all.map(() => '---')]),
    ...Object.entries(WORDS).map(([capability, words]) =>
      line([`${words} (\`${capability}\`)`, ...all.map(({ capabilities }) => (capabilities.has(capability as Capability) ? 'yes' : '–'))]),
    ),
    line(['releases', ...all.map(({ versions }) => versions?.join(', ') ?? '')]),
    line(['volumes', ...all.map(({ volumeSlots }) => (volumeSlots === 0 ? '–' : `${volumeSlots}`))]),
    line(['networks', ...all.map(networksOf)]),
  ].join('\n')
}

const networksOf = ({ networks = new Set(['user', 'tap'] as const) }: Hypervisor): string =>
  networks.size === 0 ? '–' : [...networks].map((backend) => (backend === 'tap' ? 'bridge' : 'user')).join(', ')
