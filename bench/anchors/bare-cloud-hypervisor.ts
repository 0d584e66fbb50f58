/** Cloud Hypervisor by hand: its command line boots and restores, its API saves (its OpenAPI document, version 0.3.0). */
import { KERNEL_COMMAND_LINE } from '../../packages/daemon/src/hypervisors/cloud-hypervisor/machine.ts'
import { GUEST_CID, VSOCK_SOCKET } from '../../packages/daemon/src/hypervisors/vsock-guest.ts'
import { INITRD, KERNEL } from './bare-guest.ts'
import { API_SOCKET, type BareVmm } from './bare-vmm.ts'

const onOff = (value: boolean): string => (value ? 'on' : 'off')

export const BARE_CLOUD_HYPERVISOR: BareVmm = {
  title: 'Cloud Hypervisor',
  program: 'cloud-hypervisor',
  boot: ({ memoryMib, disks }) => ({
    args: [
      ...['--api-socket', `path=${API_SOCKET}`, '--cpus', 'boot=1', '--memory', `size=${memoryMib}M`],
      ...['--kernel', KERNEL, '--initramfs', INITRD, '--cmdline', KERNEL_COMMAND_LINE],
      ...['--serial', 'file=console.log', '--console', 'off'],
      ...['--vsock', `cid=${GUEST_CID},socket=${VSOCK_SOCKET}`],
      '--disk',
      ...disks.map(({ role, path, readOnly }) => `path=${path},readonly=${onOff(readOnly)},serial=${role},image_type=raw`),
    ],
    requests: [],
  }),
  wake: (files, way) => ({
    args: ['--api-socket', `path=${API_SOCKET}`, '--restore', `source_url=file://${files},memory_restore_mode=${way},resume=true`],
    requests: [],
  }),
  pause: { method: 'PUT', path: '/api/v1/vm.pause' },
  resume: { method: 'PUT', path: '/api/v1/vm.resume' },
  save: (files) => ({ method: 'PUT', path: '/api/v1/vm.snapshot', body: { destination_url: `file://${files}` } }),
}
