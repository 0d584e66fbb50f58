/** The ways out of a capture that is not to end the VM: it runs on, and so does its workload, whatever came between. */
import type { InstanceWork } from '../instance-work.ts'
import type { LiveVm } from '../live-vm.ts'

const RESUME_LIMIT_MS = 10_000
const THAW_LIMIT_MS = 5000

/**
 * The VM runs on. One that cannot be made to is tried once more; then its instance says so: Unknown, and a stop leads out. Never
 * throws: it is an undo, and what is undone is the error.
 */
export async function runOn(work: InstanceWork, live: LiveVm): Promise<void> {
  const resume = (): Promise<void> => live.vm.resume(work.undoStep(RESUME_LIMIT_MS))
  try {
    await resume().catch(resume)
  } catch (error) {
    // One that has ended is told of by its exit.
    if (await live.hasEnded()) return
    work.log.error({ err: error }, 'a VM that was paused could not be resumed')
    const why = error instanceof Error ? error.message : String(error)
    work.change({ state: 'Unknown', stateError: `its VM stands still and could not be resumed: ${why}` })
  }
}

/** The workload goes on. A freeze ends by a word alone, so a guest that does not hear it now is told on the next line to it. */
export async function thaw(work: InstanceWork, live: LiveVm): Promise<void> {
  live.letGo()
  try {
    const step = work.undoStep(THAW_LIMIT_MS)
    await (await live.connected(step)).wake({}, step)
  } catch (error) {
    work.log.warn({ err: error }, 'the workload could not be thawed, and will be as soon as its guest answers')
    await live.redial()
  } finally {
    live.goOn()
  }
}
