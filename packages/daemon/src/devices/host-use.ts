/** What the host itself lives on must not be taken from it: a network card that is up, a disk that is mounted, a GPU whose parts are in use. */
import { readFile, realpath } from 'node:fs/promises'
import path from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import { namesIn, readAttribute, type Sysfs } from '../host/sysfs.ts'
import { pciDir } from './pci.ts'
import { hasParts } from './vgpus.ts'

const IFF_UP = 1

/** Throws `conflict`, naming what the host does with it. A heuristic for accidents: what else uses a device only its driver knows. */
export async function assertUnusedByHost(sysfs: Sysfs, address: string): Promise<void> {
  const use =
    (await interfaceThatIsUp(sysfs, address)) ??
    (await mountedDisk(sysfs, address)) ??
    ((await hasParts(sysfs, address)) ? 'a part of it is in use' : undefined)
  if (use === undefined) return
  throw new AppError('conflict', `The host uses the device ${address}: ${use}`, { hint: 'Stop using it there first', detail: { use } })
}

async function interfaceThatIsUp(sysfs: Sysfs, address: string): Promise<string | undefined> {
  const dir = path.join(pciDir(sysfs, address), 'net')
  for (const name of await namesIn(dir)) {
    if ((Number(await readAttribute(path.join(dir, name, 'flags'))) & IFF_UP) !== 0) return `its network interface ${name} is up`
  }
  return undefined
}

/** Partitions and what is made of several disks are below them in sysfs, or name them as their slaves. */
async function mountedDisk(sysfs: Sysfs, address: string): Promise<string | undefined> {
  const own = await realpath(pciDir(sysfs, address)).catch(() => undefined)
  if (own === undefined) return undefined
  for (const [number, where] of await inUse(sysfs)) {
    const disks = await disksBelow(path.join(sysfs.root, 'dev/block', number))
    if (disks.some((disk) => disk.startsWith(`${own}/`))) return `${where} is on it`
  }
  return undefined
}

/** Device numbers of what is mounted, and where. */
async function inUse({ proc }: Sysfs): Promise<Map<string, string>> {
  const used = new Map<string, string>()
  const table = await readFile(path.join(proc, 'self/mountinfo'), 'utf8').catch(() => '')
  for (const line of table.split('\n')) {
    const [, , number, , where] = line.split(' ')
    if (number !== undefined && where !== undefined && !number.startsWith('0:')) used.set(number, where)
  }
  return used
}

async function disksBelow(link: string, depth = 0): Promise<string[]> {
  const own = await realpath(link).catch(() => undefined)
  if (own === undefined || depth > 8) return []
  const slaves = await Promise.all(
    (await namesIn(path.join(own, 'slaves'))).map((name) => disksBelow(path.join(own, 'slaves', name), depth + 1)),
  )
  return [own, ...slaves.flat()]
}
