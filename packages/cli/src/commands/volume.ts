import type { Command } from 'commander'
import { addVerbs, volumeVerbs } from '../verbs.ts'

export function define(command: Command): void {
  addVerbs(command.usage('<command> ...').helpCommand(false), volumeVerbs, new WeakMap())
}
