import { durationsAt, type Instance } from '../instances/instance.ts'
import { presentInstance } from './present-instance.ts'

/** Records are replaced, never changed, so what was written of one holds as long as it does. Only its durations grow. */
const written = new WeakMap<Instance, string>()

/** `JSON.stringify(presentInstance(…))`, written once for a record however often it is listed. */
export function instanceJson(instance: Instance, nowMs: number): string {
  let head = written.get(instance)
  if (head === undefined) {
    const { phase_durations_ms: _, ...lasting } = presentInstance(instance, nowMs)
    head = JSON.stringify(lasting).slice(0, -1)
    written.set(instance, head)
  }
  return `${head},"phase_durations_ms":${JSON.stringify(durationsAt(instance.phases, nowMs))}}`
}
