import type { Command } from 'commander'
import { addVerbs, snapshotVerbs } from '../verbs.ts'

export function define(command: Command): void {
  addVerbs(command.usage('<command> ...').helpCommand(false), snapshotVerbs, new WeakMap())
}
