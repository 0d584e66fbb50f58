/** Memory by the layer: what a shim finds that its VMM has written, and what it writes into one that is to go on. */
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import type { Step } from '../lib/step.ts'
import { type CapturedDimm, type DeltaSum, describeState, writeManifest } from '../memory/capture-files.ts'
import type { Capture, CaptureUnderWay, MachineRecord } from './hypervisor.ts'
import type { AddedMemory, LoadedDelta, Shim } from './shim.ts'

/** Of a paused VM whose device state is where its shim looks for it. Whole with its manifest, which comes last. */
export async function captureMemory(
  shim: Shim,
  { base, baseSum, memoryBytes, facts }: MachineRecord,
  into: string,
  step: Step,
  dimms: readonly (Omit<CapturedDimm, 'delta'> & AddedMemory)[] = [],
): Promise<CaptureUnderWay> {
  const { bytes, stored } = await shim.capture(into, step, dimms)
  const whole = stored.then(async ({ sum, pages, deltaBytes, added }): Promise<Capture> => {
    const state = await describeState(into)
    const delta = { bytes: deltaBytes, pages, sum }
    const captured = dimms.flatMap(({ slot, address, bytes: size }, index) => {
      const own = added[index]
      return own === undefined ? [] : [{ slot, address, bytes: size, delta: own }]
    })
    const createdAt = new Date().toISOString()
    const more = captured.length === 0 ? {} : { dimms: captured }
    await writeManifest(into, { version: 1, facts, memoryBytes, base, baseSum, state, delta, ...more, createdAt })
    return { dir: into, base }
  })
  whole.catch(() => undefined)
  return { bytes, stored: whole }
}

/** The written pages into the memory of a VM that is paused: checked while they are loaded. Throws `snapshot_unusable`. */
export async function loadDelta(shim: Shim, file: string, written: DeltaSum, step: Step, into?: AddedMemory): Promise<void> {
  const { pages, sum } = await loadBy(shim, file, step, into)
  if (pages === written.pages && sum === written.sum) return
  throw new AppError('snapshot_unusable', 'The sleeping state cannot be used: its memory is not the one that was written')
}

async function loadBy(shim: Shim, file: string, step: Step, into?: AddedMemory): Promise<LoadedDelta> {
  try {
    return await shim.load(file, step, into)
  } catch (cause) {
    if (errorCodeOf(cause) === 'timed_out') throw cause
    throw new AppError('snapshot_unusable', 'The sleeping state cannot be used: its memory could not be loaded', { cause })
  }
}
