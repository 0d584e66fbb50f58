import type { Step } from '../../lib/step.ts'
import type { DiskRole } from '../vm-spec.ts'
import { diskOf, dropUnused, hasNode, layerFileOf } from './block-graph.ts'
import { layerName, limitName, openLayerOptions } from './disk-nodes.ts'
import { type Qmp, QmpError } from './qmp.ts'

const CANCEL_LIMIT_MS = 10_000

/**
 * Copies what lies between a disk's top and its bottom into the top, while the VM runs, and lets go of the layers in between. Returns the
 * files of those that are left.
 */
export async function flattenLive(qmp: Qmp, role: DiskRole, prepared: ReadonlySet<number>, step: Step): Promise<string[]> {
  const { sets, format } = await diskOf(qmp, role, step)
  const [top, ...below] = sets
  const bottom = below.at(-1)
  if (bottom !== undefined && below.length > 1) await stream(qmp, `flatten-${role}`, top, bottom, step)
  // QEMU keeps what it noted about what was copied to itself until someone flushes; the layers that it was copied from are about to go.
  // Nothing else that makes it flush says whether it worked.
  const isLimited = await hasNode(qmp, limitName(top), step)
  const options = openLayerOptions({ set: top, format, isLimited }, bottom === undefined ? null : layerName(bottom))
  await qmp.execute('blockdev-reopen', { options: [options] }, step)
  await dropUnused(qmp, prepared, step)
  const left: string[] = []
  for (const set of bottom === undefined ? [top] : [top, bottom]) left.push(await layerFileOf(qmp, set, step))
  return left
}

async function stream(qmp: Qmp, job: string, top: number, bottom: number, step: Step): Promise<void> {
  // A daemon may have died over one, which has gone on without it.
  if (!(await isUnderWay(qmp, job, step))) {
    // Without a name of ours it would write one of its own into the layer's head.
    const names = { device: layerName(top), 'base-node': layerName(bottom), 'backing-file': '' }
    await qmp.execute('block-stream', { 'job-id': job, ...names }, step)
  }
  const isIts = (data: Readonly<Record<string, unknown>>): boolean => data.device === job
  try {
    const { error } = await qmp.event('BLOCK_JOB_COMPLETED', step, isIts)
    if (error !== undefined) throw new QmpError('block-stream', String(error).slice(0, 500))
  } catch (cause) {
    if (step.signal.aborted) await cancel(qmp, job, isIts, { ...step, signal: AbortSignal.timeout(CANCEL_LIMIT_MS) })
    throw cause
  }
}

/** What was copied stays in the top, where it does no harm. */
async function cancel(qmp: Qmp, job: string, isIts: (data: Readonly<Record<string, unknown>>) => boolean, step: Step): Promise<void> {
  try {
    await qmp.execute('block-job-cancel', { device: job, force: true }, step)
    await Promise.race([qmp.event('BLOCK_JOB_CANCELLED', step, isIts), qmp.event('BLOCK_JOB_COMPLETED', step, isIts)])
  } catch (error) {
    step.log.warn({ err: error, job }, 'a copy of layers could not be cancelled, and goes on')
  }
}

async function isUnderWay(qmp: Qmp, job: string, step: Step): Promise<boolean> {
  const jobs = await qmp.execute('query-block-jobs', undefined, step)
  return Array.isArray(jobs) && jobs.some((one) => typeof one === 'object' && one !== null && 'device' in one && one.device === job)
}
