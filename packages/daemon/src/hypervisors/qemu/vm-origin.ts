/**
 * Where a VM comes from, and what of its origin it is launched with: the memory that it stands on, and the state that is loaded into it.
 *
 *     boot      zeros                 nothing
 *     wake      a golden boot         the devices of that
 *     restore   a capture's base      what the capture has beyond it, then the devices
 */
import path from 'node:path'
import type { Step } from '../../lib/step.ts'
import { type CaptureManifest, DELTA, dimmFile, STATE } from '../../memory/capture-files.ts'
import type { GoldenBoot, HeldBase } from '../../memory/memory.ts'
import { loadDelta } from '../captured-memory.ts'
import type { Capture, MachineRecord } from '../hypervisor.ts'
import type { Descriptor, Shim } from '../shim.ts'
import { FD } from './command-line.ts'
import { type Dimm, dimmFd } from './dimms.ts'

/** Where a VM comes from: see `Entry`. */
export type Origin =
  | { readonly entry: 'boot'; readonly base: HeldBase }
  | { readonly entry: 'wake'; readonly golden: GoldenBoot; readonly waits?: boolean }
  | {
      readonly entry: 'restore'
      readonly capture: Capture
      readonly manifest: CaptureManifest
      readonly base: HeldBase
      readonly waits?: boolean
    }

export const ZERO_SUM = '0'.repeat(16)
export const ORIGINS = { boot: 'boot', wake: 'golden', restore: 'restore' } as const

export function baseOf(origin: Origin): Pick<MachineRecord, 'base' | 'baseSum'> {
  switch (origin.entry) {
    case 'boot':
      return { base: 'zero', baseSum: ZERO_SUM }
    case 'wake':
      return { base: `golden/${origin.golden.key}`, baseSum: origin.golden.sum }
    case 'restore':
      return { base: origin.capture.base, baseSum: origin.manifest.baseSum }
  }
}

export function memoryOf(origin: Origin): Descriptor {
  const number = FD.MEMORY
  if (origin.entry === 'wake') return { number, kind: 'daemon', fd: origin.golden.base.fd }
  const { base } = origin
  if (base.kind === 'scratch') return { number, kind: 'scratch', file: base.dir }
  return base.kind === 'file' ? { number, kind: 'write', file: base.path } : { number, kind: 'daemon', fd: base.fd }
}

export const dimmsIn = (origin: Origin): readonly Dimm[] => (origin.entry === 'restore' ? (origin.manifest.dimms ?? []) : [])

export function stateOf(origin: Origin): Descriptor[] {
  if (origin.entry === 'boot') return []
  const file = origin.entry === 'wake' ? origin.golden.stateFile : path.join(origin.capture.dir, STATE)
  return [{ number: FD.STATE, kind: 'read', file }]
}

/** Checked while it is written, and before the devices. */
export async function loadMemory(shim: Shim, { capture, manifest }: Extract<Origin, { entry: 'restore' }>, step: Step): Promise<void> {
  const { delta, dimms = [] } = manifest
  if (delta !== undefined) await loadDelta(shim, path.join(capture.dir, DELTA), delta, step)
  for (const [index, { slot, bytes, delta: own }] of dimms.entries())
    await loadDelta(shim, path.join(capture.dir, dimmFile(index)), own, step, { fd: dimmFd(slot), bytes })
}
