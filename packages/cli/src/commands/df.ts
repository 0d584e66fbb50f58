import type { DiskKind } from '@dormouse/api/garbage.ts'
import type { ResourceStatus, Resources } from '@dormouse/api/resources.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../daemon.ts'
import { humanBytes, percent } from '../output/format.ts'
import { print, printJson, printTable } from '../output/print.ts'

export function define(command: Command): void {
  command.option('--json', 'for programs').action(() => df(command.optsWithGlobals()))
}

async function df(options: HostOption & { json?: true }): Promise<void> {
  const daemon = connect(options)
  const [usage, resources] = await Promise.all([daemon.call('getDiskUsage'), daemon.call('getResources')])
  if (options.json) return printJson({ usage, resources })
  printTable(
    [
      { title: 'TYPE', value: ({ kind, part_of }) => `${part_of === undefined ? '' : '  '}${TITLES[kind]}` },
      { title: 'TOTAL', value: ({ count }) => `${count}`, align: 'right' },
      { title: 'ACTIVE', value: ({ in_use }) => `${in_use}`, align: 'right' },
      { title: 'SIZE', value: ({ bytes }) => humanBytes(bytes), align: 'right' },
      { title: 'SHARED', value: ({ shared_bytes }) => humanBytes(shared_bytes), align: 'right' },
      {
        title: 'RECLAIMABLE',
        value: ({ bytes, reclaimable_bytes: free }) => `${humanBytes(free)}${free === 0 ? '' : ` (${percent(free / bytes)})`}`,
        align: 'right',
      },
    ],
    usage.kinds,
  )
  const { used_bytes: used, free_bytes: free, total_bytes: total, reclaimable_bytes: reclaimable } = usage
  print(`\n${humanBytes(used)} used, ${humanBytes(reclaimable)} reclaimable; ${humanBytes(free)} of the disk's ${humanBytes(total)} free`)
  print('')
  printTable(
    [
      { title: 'RESOURCE', value: ({ what }) => what },
      { title: 'HOST', value: ({ status, show }) => show(status.capacity), align: 'right' },
      { title: 'LIMIT', value: ({ status, show }) => show(status.effective_limit), align: 'right' },
      { title: 'GIVEN', value: ({ status, show }) => show(status.allocated), align: 'right' },
      { title: 'LEFT', value: ({ status, show }) => show(status.available), align: 'right' },
      {
        title: 'GIVEN %',
        value: ({ status }) => (status.effective_limit > 0 ? percent(status.allocated / status.effective_limit) : '-'),
        align: 'right',
      },
    ],
    resourceRows(resources),
  )
  if (resources.gpu) showGpus(resources.gpu)
}

function showGpus({ mode, total_slots: total, used_slots: used, profiles = [], devices = [] }: NonNullable<Resources['gpu']>): void {
  print('')
  print(`GPUs: ${used} of ${total} ${mode === 'vgpu' ? 'parts' : 'devices'} in use`)
  if (profiles.length > 0) {
    printTable(
      [
        { title: 'PROFILE', value: ({ name }) => name },
        { title: 'MEMORY', value: ({ framebuffer_mb: mb }) => (mb === 0 ? '-' : humanBytes(mb * 2 ** 20)), align: 'right' },
        { title: 'LEFT', value: ({ available }) => `${available}`, align: 'right' },
      ],
      profiles,
    )
  }
  if (devices.length > 0) {
    printTable(
      [
        { title: 'GPU', value: ({ name }) => name },
        { title: 'FREE', value: ({ available }) => (available ? 'yes' : 'no') },
      ],
      devices,
    )
  }
}

const TITLES: Readonly<Record<DiskKind, string>> = {
  images: 'Images',
  layers: 'Layers',
  rootfs: 'Root file systems',
  golden_boots: 'Golden boots',
  memory_bases: 'Memory bases',
  deltas: 'Sleeping states',
  overlays: 'Writable disks',
  volumes: 'Volumes',
  snapshots: 'Snapshots',
  logs: 'Logs',
  drafts: 'Drafts',
  other: 'Database and caches',
}

interface Row {
  readonly what: string
  readonly status: ResourceStatus
  readonly show: (value: number) => string
}

// A limit that no one could find out is 0; it is no limit.
const known = (show: (value: number) => string) => (value: number) => (value === 0 ? '-' : show(value))
const rate = (bytesPerSecond: number): string => `${humanBytes(bytesPerSecond)}/s`

function resourceRows(resources: Resources): Row[] {
  return [
    { what: 'CPU', status: resources.cpu, show: String },
    { what: 'Memory', status: resources.memory, show: humanBytes },
    { what: 'Disk', status: resources.disk, show: humanBytes },
    { what: 'Network', status: resources.network, show: known(rate) },
    ...(resources.disk_io === undefined ? [] : [{ what: 'Disk I/O', status: resources.disk_io, show: known(rate) }]),
  ]
}
