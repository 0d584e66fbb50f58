import type { JournalFact } from '../guest/journal.ts'
import type { VmExit } from '../hypervisors/hypervisor.ts'

/** How an instance came to its end, as the record keeps it. The code is the workload's; absent when no one saw it. */
export interface InstanceExit {
  readonly code?: number
  readonly message: string
  readonly atMs: number
}

/**
 * What is said of an instance whose VM has ended. The journal, written by the guest while it could, outweighs what the VMM's own
 * end tells; `killed` says that it was our doing. Pure.
 */
export function exitOf(journal: readonly JournalFact[], vm: VmExit, options: { killed?: boolean } = {}): InstanceExit {
  const exited = journal.findLast((fact) => fact.event === 'exited')
  if (exited) return { code: exited.code, message: exited.message, atMs: vm.atMs }
  const hasStarted = journal.some((fact) => fact.event === 'started')
  const atMs = vm.atMs
  // 128 + 9, as a shell says of what was killed.
  if (options.killed)
    return { ...(hasStarted ? { code: 137 } : {}), message: 'killed by signal 9 (SIGKILL): it did not end when asked to', atMs }
  switch (vm.kind) {
    case 'exited':
      if (vm.code !== 0) return { message: `the VM ended with code ${vm.code}: see its vmm log`, atMs }
      return {
        message: hasStarted ? 'the guest was powered off' : 'the guest ended before its workload was started: see its vmm log',
        atMs,
      }
    case 'signaled':
      return { message: `the VM was killed by ${vm.signal}: see its vmm log`, atMs }
    case 'lost':
      return { message: 'the VM is gone and no one saw it end: the host was restarted, or its shim was killed', atMs }
  }
}
