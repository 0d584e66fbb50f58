import type { Command } from 'commander'
import { addVerbs, scheduleVerbs } from '../verbs.ts'

export function define(command: Command): void {
  addVerbs(command.usage('<command> ...').helpCommand(false), scheduleVerbs, new WeakMap())
}
