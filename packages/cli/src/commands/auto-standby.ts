import type { Command } from 'commander'
import { addVerbs, autoStandbyVerbs } from '../verbs.ts'

export function define(command: Command): void {
  addVerbs(command.usage('<command> ...').helpCommand(false), autoStandbyVerbs, new WeakMap())
}
