/** Firecracker by hand: all that it does it is asked for over its API. What is saved is a full snapshot: one that holds what has changed alone is none by itself. */
import { kernelCommandLine, SLOTS } from '../../packages/daemon/src/hypervisors/firecracker/machine.ts'
import type { VmmRequest } from '../../packages/daemon/src/hypervisors/vmm-api.ts'
import { GUEST_CID, VSOCK_SOCKET } from '../../packages/daemon/src/hypervisors/vsock-guest.ts'
import { INITRD, KERNEL } from './bare-guest.ts'
import { API_SOCKET, type BareVmm } from './bare-vmm.ts'

const ARGS = ['--api-sock', API_SOCKET, '--id', 'bare', '--level', 'Error'] as const
const stateIn = (files: string): string => `${files}/state`
const memoryIn = (files: string): string => `${files}/memory`
const put = (path: string, body: unknown): VmmRequest => ({ method: 'PUT', path, body })

export const BARE_FIRECRACKER: BareVmm = {
  title: 'Firecracker',
  program: 'firecracker',
  boot: ({ memoryMib, disks }) => {
    // Its guest is told their order, since they have no serials.
    const order = disks.flatMap(({ role }) => SLOTS.filter(({ name }) => name === role))
    return {
      args: ARGS,
      requests: [
        put('/machine-config', { vcpu_count: 1, mem_size_mib: memoryMib, smt: false, track_dirty_pages: false }),
        put('/boot-source', { kernel_image_path: KERNEL, initrd_path: INITRD, boot_args: kernelCommandLine(order) }),
        ...disks.map(({ role, path, readOnly }) =>
          // What a guest flushes is flushed, as elsewhere.
          put(`/drives/${role}`, {
            ...{ drive_id: role, path_on_host: path, is_root_device: false, is_read_only: readOnly },
            ...{ cache_type: 'Writeback', io_engine: 'Sync' },
          }),
        ),
        put('/vsock', { guest_cid: GUEST_CID, uds_path: VSOCK_SOCKET }),
        put('/actions', { action_type: 'InstanceStart' }),
      ],
    }
  },
  wake: (files, way) => ({
    args: ARGS,
    requests: [
      put('/snapshot/load', {
        snapshot_path: stateIn(files),
        mem_backend: { backend_type: way, backend_path: memoryIn(files) },
        resume_vm: true,
      }),
    ],
  }),
  pause: { method: 'PATCH', path: '/vm', body: { state: 'Paused' } },
  resume: { method: 'PATCH', path: '/vm', body: { state: 'Resumed' } },
  save: (files) => put('/snapshot/create', { snapshot_path: stateIn(files), mem_file_path: memoryIn(files), snapshot_type: 'Full' }),
}
