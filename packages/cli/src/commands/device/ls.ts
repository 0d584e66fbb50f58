import type { Device } from '@dormouse/api/devices.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { ago } from '../../output/format.ts'
import { print, printJson, printTable } from '../../output/print.ts'
import type { Column } from '../../output/table.ts'
import { collect, parseTags } from '../../parse/values.ts'

interface Options extends HostOption {
  readonly tag?: string[]
  readonly quiet?: true
  readonly json?: true
}

export function define(command: Command): void {
  command
    .option('-t, --tag <key=value>', 'only those with this tag; may be repeated', collect)
    .option('-q, --quiet', 'ids alone')
    .option('--json', 'for programs')
    .action(() => list(command.optsWithGlobals()))
}

async function list(options: Options): Promise<void> {
  const tags = parseTags(options.tag ?? [])
  const daemon = connect(options)
  const devices = await daemon.call('listDevices', { query: tags === undefined ? {} : { tags } })
  if (options.json) return printJson(devices)
  if (options.quiet) {
    for (const { id } of devices) print(id)
    return
  }
  const names = new Map((await daemon.call('listInstances', {})).map(({ id, name }) => [id, name]))
  printTable(columns(names, Date.now()), devices)
}

const columns = (names: ReadonlyMap<string, string>, now: number): Column<Device>[] => [
  { title: 'NAME', value: ({ name = '' }) => name, shrinksTo: 20 },
  { title: 'ID', value: ({ id }) => id },
  { title: 'TYPE', value: ({ type }) => type },
  { title: 'ADDRESS', value: ({ pci_address }) => pci_address },
  { title: 'VENDOR:DEVICE', value: ({ vendor_id, device_id }) => `${vendor_id}:${device_id}` },
  { title: 'GROUP', value: ({ iommu_group }) => `${iommu_group}`, align: 'right' },
  { title: 'ATTACHED TO', value: ({ attached_to }) => (attached_to ? (names.get(attached_to) ?? attached_to) : ''), shrinksTo: 12 },
  { title: 'CREATED', value: ({ created_at }) => ago(created_at, now) },
]
