/** What the host itself lives on must not be taken from it: a network card that is up, a disk that is in use, a GPU whose parts are. */
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
    (await diskInUse(sysfs, address)) ??
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

/**
 * The device is in use when one of its disks is: mounted, swapped to, or claimed by something in the kernel. Partitions are below their
 * disk in sysfs; what is made of several disks names them as its slaves.
 */
async function diskInUse(sysfs: Sysfs, address: string): Promise<string | undefined> {
  const own = await realpath(pciDir(sysfs, address)).catch(() => undefined)
  if (own === undefined) return undefined
  const disks = await disksOf(sysfs, own)
  const places = [own, ...disks.map(({ dir }) => dir)]
  for (const [link, use] of await inUse(sysfs)) {
    const under = await disksBelow(link)
    if (under.some((disk) => places.some((place) => disk === place || disk.startsWith(`${place}/`)))) return use
  }
  for (const { name } of disks) {
    const node = name.replaceAll('!', '/')
    if (await sysfs.isClaimed(path.join(sysfs.dev, node))) return `the kernel holds /dev/${node}, as a part of a pool or of a volume`
  }
  return undefined
}

/** Disks and partitions whose hardware is below `own`. */
async function disksOf({ root }: Sysfs, own: string): Promise<{ readonly name: string; readonly dir: string }[]> {
  const dirOf = (name: string): Promise<string | undefined> => realpath(path.join(root, 'class/block', name)).catch(() => undefined)
  const all = await Promise.all((await namesIn(path.join(root, 'class/block'))).map(async (name) => ({ name, dir: await dirOf(name) })))
  const places = [own]
  for (const { name, dir } of all) {
    // With native multipath only a hidden path, nvme0c0n1, is below the controller; the disk itself, nvme0n1, is a virtual device.
    const [, subsystem, namespace] = /^(nvme\d+)c\d+(n\d+)$/.exec(name) ?? []
    if (subsystem === undefined || !dir?.startsWith(`${own}/`)) continue
    const head = await dirOf(`${subsystem}${namespace}`)
    if (head !== undefined) places.push(head)
  }
  return all.flatMap(({ name, dir }) =>
    dir !== undefined && places.some((place) => dir === place || dir.startsWith(`${place}/`)) ? { name, dir } : [],
  )
}

/** What is mounted or swapped to, as links to it in sysfs, and how it is used. */
async function inUse(sysfs: Sysfs): Promise<[link: string, use: string][]> {
  const used: [string, string][] = []
  for (const line of await linesOf(path.join(sysfs.proc, 'self/mountinfo'))) {
    const [mount = '', about = ''] = line.split(' - ')
    const [, , number, , where] = mount.split(' ')
    const [, source = ''] = about.split(' ')
    if (number === undefined || where === undefined) continue
    // btrfs and its like have a made-up number: only their source says where they are.
    const link = number.startsWith('0:') ? await linkOf(sysfs, source) : path.join(sysfs.root, 'dev/block', number)
    if (link !== undefined) used.push([link, `${where} is on it`])
  }
  for (const line of await linesOf(path.join(sysfs.proc, 'swaps'))) {
    const link = await linkOf(sysfs, line.split(/\s/)[0] ?? '')
    if (link !== undefined) used.push([link, 'it is swapped to'])
  }
  return used
}

/** Of a node in /dev; those of the device mapper are links with names of their own. */
async function linkOf(sysfs: Sysfs, source: string): Promise<string | undefined> {
  if (!source.startsWith('/dev/')) return undefined
  const [dev, node] = await Promise.all(
    [sysfs.dev, path.join(sysfs.dev, unescaped(source).slice('/dev/'.length))].map((file) => realpath(file).catch(() => undefined)),
  )
  if (dev === undefined || node === undefined) return undefined
  return path.join(sysfs.root, 'class/block', path.relative(dev, node).replaceAll('/', '!'))
}

/** Spaces and their like are octal there (proc(5)). */
const unescaped = (text: string): string => text.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(Number.parseInt(octal, 8)))

const linesOf = async (file: string): Promise<string[]> => (await readFile(file, 'utf8').catch(() => '')).split('\n')

async function disksBelow(link: string, depth = 0): Promise<string[]> {
  const own = await realpath(link).catch(() => undefined)
  if (own === undefined || depth > 8) return []
  const slaves = await Promise.all(
    (await namesIn(path.join(own, 'slaves'))).map((name) => disksBelow(path.join(own, 'slaves', name), depth + 1)),
  )
  return [own, ...slaves.flat()]
}
