/**
 * The recovery table: what is done at a start of the daemon for an instance that the last one left behind. Pure; `reconcile.ts`
 * gathers the facts and carries the answer out. docs/lifecycle.md shows the same table, each row with its test.
 *
 * Work that was cut short is undone when its commit point had not been reached and finished when it had. The commit point of
 * create and start is the record of the VM, which also ends the operation; that of stop, delete and update is the record of the
 * intent, which begins it. That of standby is the record of the sleeping state, that of restore the record that it is consumed.
 */
import type { Instance } from './instance.ts'

export type VmFact =
  /** No VM is recorded. What may run in its run directory is a start that was cut short. */
  | 'none'
  /** The recorded VM runs: the same process, by pid and start time, or its successor in the run directory. */
  | 'running'
  /** The recorded VM is gone. */
  | 'ended'
  /** It could not be found out. */
  | 'unclear'

export interface Facts {
  readonly vm: VmFact
  readonly hasDisk: boolean
  /** The sleeping state that its row names is there; absent when it names none. */
  readonly hasSleep?: boolean
  /** Devices of the host that were taken for its VM have not been given back. */
  readonly holdsDevices?: boolean
  /** Why `vm` is unclear. */
  readonly why?: string
}

export type Recovery =
  /** Nothing was going on. */
  | { readonly action: 'rest' }
  /** It was never whole: take away all of it, its row last. */
  | { readonly action: 'undo_create' }
  /** End what may have been started, then it is Stopped as it was before. */
  | { readonly action: 'undo_start' }
  | { readonly action: 'finish_stop' }
  | { readonly action: 'finish_delete' }
  | { readonly action: 'finish_update' }
  /** A volume is on its way into a VM that runs, or out of it. */
  | { readonly action: 'finish_volumes' }
  /** Hold the VM again; its guest says how far it has come. */
  | { readonly action: 'adopt' }
  /** Its memory is loaded and its sleeping state consumed: let it run, and wake its guest. */
  | { readonly action: 'finish_restore' }
  /** The VM ended while no daemon was there: keep its disk, say how it ended. */
  | { readonly action: 'settle_ended' }
  /** It was in doubt, and sleeps: its disk and its sleeping state are there. */
  | { readonly action: 'settle_asleep' }
  /** It is at rest, and the host has not all of its devices back. */
  | { readonly action: 'give_back_devices' }
  | { readonly action: 'mark_unknown'; readonly why: string }

export function recover(stored: Pick<Instance, 'state' | 'operation'> & Partial<Pick<Instance, 'volumes'>>, facts: Facts): Recovery {
  switch (stored.operation) {
    case 'create':
      return { action: 'undo_create' }
    case 'delete':
      return { action: 'finish_delete' }
    case 'start':
      return { action: 'undo_start' }
    case 'stop':
      return { action: 'finish_stop' }
    case 'update':
      return { action: 'finish_update' }
    case 'restore':
      return facts.vm === 'running' ? { action: 'finish_restore' } : settle(stored.state, facts)
    case 'attach_volume':
    case 'detach_volume':
      // Where no VM is any more, the record alone says what is attached.
      return facts.vm === 'running' ? { action: 'finish_volumes' } : settle(stored.state, facts)
    // These write no intent: before their commit point nothing of the instance has changed, and behind it they are done.
    case 'standby':
    case 'fork':
    case 'snapshot':
    case 'restore_snapshot':
      return settle(stored.state, facts)
    case undefined:
      // It was in doubt how far the move had come.
      if (facts.vm === 'running' && stored.volumes?.some(({ moving }) => moving !== undefined)) return { action: 'finish_volumes' }
      return settle(stored.state, facts)
  }
}

function settle(state: Instance['state'], facts: Facts): Recovery {
  if (facts.vm === 'unclear') return { action: 'mark_unknown', why: facts.why ?? 'its VM could not be looked at' }
  if (facts.vm === 'running') return { action: 'adopt' }
  if (!facts.hasDisk) return { action: 'mark_unknown', why: 'its disk is missing' }
  if (facts.vm === 'ended') return { action: 'settle_ended' }
  // Whatever it was taken for meanwhile: a sleeping state that is whole is never given up but by a stop.
  if (facts.hasSleep === false) return { action: 'mark_unknown', why: 'its sleeping state is missing' }
  if (facts.hasSleep === true && state !== 'Standby') return { action: 'settle_asleep' }
  switch (state) {
    case 'Standby':
    case 'Stopped':
      return { action: facts.holdsDevices ? 'give_back_devices' : 'rest' }
    case 'Unknown':
    case 'Created':
    case 'Initializing':
    case 'Running':
    case 'Paused':
    case 'Shutdown':
      return { action: 'settle_ended' }
  }
}
