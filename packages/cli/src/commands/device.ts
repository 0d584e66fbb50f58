import type { Command } from 'commander'
import { addVerbs, deviceVerbs } from '../verbs.ts'

export function define(command: Command): void {
  addVerbs(command.usage('<command> ...').helpCommand(false), deviceVerbs, new WeakMap())
}
