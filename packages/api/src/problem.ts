import { type Static, Type } from 'typebox'
import { ERROR_CODES } from './errors.ts'

/** The body of every answer that is not a success. */
export const Problem = Type.Object(
  {
    code: Type.Enum([...ERROR_CODES]),
    message: Type.String({ description: 'What went wrong, for a person' }),
    hint: Type.Optional(Type.String({ description: 'What to do next' })),
    details: Type.Optional(Type.Array(Type.Object({ code: Type.Optional(Type.String()), message: Type.Optional(Type.String()) }))),
    inner_error: Type.Optional(Type.Object({ code: Type.Optional(Type.String()), message: Type.Optional(Type.String()) })),
  },
  { $id: 'Error' },
)
export type Problem = Static<typeof Problem>
