import type { AvailableDevice } from '@dormouse/api/devices.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { printJson, printTable } from '../../output/print.ts'
import type { Column } from '../../output/table.ts'

export function define(command: Command): void {
  command
    .option('--json', 'for programs')
    .addHelpText(
      'after',
      '\nWhat is in one group goes to one instance. A host without an IOMMU, or with it off, has none: see `dormouse doctor`.',
    )
    .action(() => list(command.optsWithGlobals()))
}

async function list(options: HostOption & { json?: true }): Promise<void> {
  const devices = await connect(options).call('listAvailableDevices')
  if (options.json) printJson(devices)
  else printTable(COLUMNS, devices)
}

const COLUMNS: Column<AvailableDevice>[] = [
  { title: 'ADDRESS', value: ({ pci_address }) => pci_address },
  { title: 'VENDOR:DEVICE', value: ({ vendor_id, device_id }) => `${vendor_id}:${device_id}` },
  { title: 'GROUP', value: ({ iommu_group }) => `${iommu_group}`, align: 'right' },
  { title: 'DRIVER', value: ({ current_driver }) => current_driver ?? '' },
  { title: 'WHAT IT IS', value: ({ vendor_name, device_name }) => [vendor_name, device_name].filter(Boolean).join(' '), shrinksTo: 20 },
]
