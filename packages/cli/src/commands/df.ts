import type { ResourceStatus, Resources } from '@dormouse/api/resources.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../daemon.ts'
import { humanBytes, percent } from '../output/format.ts'
import { print, printJson, printTable } from '../output/print.ts'

export function define(command: Command): void {
  command.option('--json', 'for programs').action(() => df(command.optsWithGlobals()))
}

async function df(options: HostOption & { json?: true }): Promise<void> {
  const resources = await connect(options).call('getResources')
  if (options.json) return printJson(resources)
  printTable(
    [
      { title: 'SPACE', value: ({ what }) => what },
      { title: 'USED', value: ({ bytes }) => humanBytes(bytes), align: 'right' },
    ],
    spaceOf(resources),
  )
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

function spaceOf({ disk_breakdown: space = {} }: Resources): { what: string; bytes: number }[] {
  const rows: [string, number | undefined][] = [
    ['Images', space.images_bytes],
    ['Image layers', space.oci_cache_bytes],
    ['Writable disks', space.overlays_bytes],
    ['Volumes', space.volumes_bytes],
  ]
  return rows.flatMap(([what, bytes]) => (bytes === undefined ? [] : [{ what, bytes }]))
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
