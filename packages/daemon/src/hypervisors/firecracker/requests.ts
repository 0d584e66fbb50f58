/**
 * What is asked of Firecracker, as pure functions of the machine: paths and bodies of its published API (`requests.test.ts` holds them to
 * facts of the document). Files are named by descriptors that the shim has opened or by
 * names that it answers, sockets relative to the VMM's own directory, so a state
 * that was saved here loads in any other VMM of ours.
 */
import type { VmmRequest } from '../vmm-api.ts'
import { GUEST_CID, VSOCK_SOCKET } from '../vsock-guest.ts'
import { FD, fileOf, kernelCommandLine, type Machine, type Slot } from './machine.ts'

/** A place that no one can write to. */
const NOWHERE = '/proc/self/fd/none'

/** Of every machine: what it opens by that name is the TAP that its shim has for it. */
const TAP = 'tap'
const NIC = 'nic'

/** All that a machine is made of, and its start. */
export function bootRequests(machine: Machine, slots: readonly Slot[]): VmmRequest[] {
  const { vcpus, memoryMib, hasTap, kernelPath, initrdPath } = machine
  return [
    put('/machine-config', { vcpu_count: vcpus, mem_size_mib: memoryMib, smt: false, track_dirty_pages: false }),
    put('/boot-source', { kernel_image_path: kernelPath, initrd_path: initrdPath, boot_args: kernelCommandLine(slots) }),
    ...slots.map(driveRequest),
    ...(hasTap ? [put(`/network-interfaces/${NIC}`, { iface_id: NIC, host_dev_name: TAP })] : []),
    put('/vsock', { guest_cid: GUEST_CID, uds_path: VSOCK_SOCKET }),
    put('/actions', { action_type: 'InstanceStart' }),
  ]
}

const driveRequest = ({ name, path, readOnly }: Slot): VmmRequest =>
  put(`/drives/${driveId(name)}`, {
    drive_id: driveId(name),
    path_on_host: path,
    is_root_device: false,
    is_read_only: readOnly,
    // Left alone it tells its guest that nothing needs to be flushed.
    cache_type: 'Writeback',
    io_engine: 'Sync',
  })

/** Opens the file behind a slot anew: the guest is told of its size. */
export const refreshDrive = ({ name, path }: Slot): VmmRequest =>
  patch(`/drives/${driveId(name)}`, { drive_id: driveId(name), path_on_host: path })

/** A machine with that state, paused, over memory that it maps privately. */
export const loadRequest = (stateFile: string): VmmRequest =>
  put('/snapshot/load', {
    snapshot_path: stateFile,
    mem_backend: { backend_type: 'File', backend_path: fileOf(FD.MEMORY) },
    resume_vm: false,
  })

/** State and memory of a paused machine, of the memory only what was ever used. */
export const saveAllRequest = (): VmmRequest =>
  put('/snapshot/create', { snapshot_path: fileOf(FD.SAVE), mem_file_path: fileOf(FD.MEMORY), snapshot_type: 'Diff' })

/**
 * The state alone, which Firecracker writes before it opens the file for the memory. That one cannot be opened, so it refuses, when the
 * state is whole: see `isSaved`. What the guest has written is read by the shim, since Firecracker would write all that the guest has
 * ever read as well.
 */
export const saveStateRequest = (): VmmRequest =>
  put('/snapshot/create', { snapshot_path: fileOf(FD.SAVE), mem_file_path: NOWHERE, snapshot_type: 'Full' })

/** The refusal that means that all but the memory was written. */
export const isSaved = (words: string): boolean => /\bCannot perform open on the memory backing file\b/.test(words)

export const stateRequest = (state: 'Paused' | 'Resumed'): VmmRequest => patch('/vm', { state })

export const describeRequest: VmmRequest = { method: 'GET', path: '/' }

/** A key press that a guest may take for a wish to end. */
export const shutdownRequest = put('/actions', { action_type: 'SendCtrlAltDel' })

/** Names with a hyphen are refused. */
const driveId = (name: string): string => name.replaceAll('-', '_')

function put(path: string, body: unknown): VmmRequest {
  return { method: 'PUT', path, body }
}

function patch(path: string, body: unknown): VmmRequest {
  return { method: 'PATCH', path, body }
}
