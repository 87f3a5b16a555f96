"""Frames of plain answers, addressed to the reader. Slots are those of `Material`; `focus` is what was asked about."""

OPENINGS = (
    "the first thing to settle about {focus} is {object}",
    "with {focus}, most of the trouble comes from {problem}",
    "you can get a long way with {focus} in {count} days",
    "start small: {focus:needs} {tool} and about {number} minutes a day",
    "here is how I would go about {focus}",
    "{focus:is} easier once {object:is} in order",
    "what decides {focus} is less the money than the order of the steps",
    "before you spend anything on {focus}, look at {object}",
    "three things matter for {focus}: {object}, {person} and time",
    "I would treat {focus} as {count} small jobs rather than one big one",
    "the quickest way into {focus} is to watch {person} do it once",
    "taking {focus} as the aim, work backwards from {day}",
    "{focus} can be done with what you have, if {problem:is} dealt with first",
    "a good plan for {focus} leaves room for {problem}",
)
BODY = (
    "{fact}",
    "Ask {person} to look at {object} before you go on.",
    "{tool} will save you about {number} minutes each time.",
    "If {problem:comes} up, stop and sort that out first; everything after it depends on it.",
    "Set aside {money} for {tool}, and no more until you have seen a result.",
    "Write down what you did and what it cost; after {count} weeks you will see a pattern.",
    "For example, {task_ing} on {day} leaves {count} days to correct mistakes.",
    "Do not begin with {task_ing}; it looks urgent but changes little.",
    "Somebody like {person} has usually met {problem} before and can tell you what worked.",
    "Keep {object} separate, so that one delay does not hold up the rest.",
    "A fair test is this: can {person} follow it without asking you?",
    "Where {topic:is} concerned, a simple rule helps: decide once, write it down, and keep to it for {count} weeks.",
    "Choose a fixed hour, say {hour}, and protect it.",
    "The weak point is usually {object}, so check it twice.",
    "Try it on a small scale {place} before you commit {money}.",
    "{fact} That is why the order of the steps matters.",
)
CLOSINGS = (
    "If only one of these fits into your week, take the first.",
    "Look at it again on {day}, and drop whatever did not help.",
    "Tell me how {object:stands} at the moment, and I can make this more exact.",
    "After {count} weeks, compare the result with {object} and decide whether to go on.",
    "Whatever you choose, let {person} know before {day}.",
    "With that, {focus} should be manageable by {month}.",
    "The rest can wait until {object:is} done.",
    "Should {problem} return, go back to the first step.",
)
EXPLAIN_OPENINGS = (
    "put simply, {focus:comes} down to a few plain facts.",
    "{focus:makes} more sense when you look at what lies behind it.",
    "to understand {focus}, begin with {object}.",
    "there is nothing mysterious about {focus}.",
    "{focus:rests} on one idea, and the rest follows from it.",
    "think of {focus} as a question of cause and effect.",
)
EXAMPLES = (
    (
        "an example: somebody has to {task} and meets {problem}; with {tool} it takes {count} hours, without "
        "it {count} days."
    ),
    "suppose {person} wants to {task}: the first look goes to {object}, the second to {tool}.",
    "in daily work this shows when you {task} and {problem:appears} {place}.",
    "take {object} as an example: {number} minutes of care now save {money} later.",
)
STEPS = (
    "Write down what {focus} should look like by {month}.",
    "Check {object} and note what is missing.",
    "Ask {person} for {number} minutes and show what you have.",
    "Get {tool}; borrow it if it costs more than {money}.",
    "Spend {count} days on this: {task}.",
    "Deal with {problem} while it is still small.",
    "Fix a date with {person}, ideally {day} at {hour}.",
    "Try everything once {place} and time it.",
    "Put {money} aside in case of {problem}.",
    "Go through {object} line by line with {person}.",
    "Leave one day free; {problem} always takes longer.",
    "Compare the result with your first note and correct one thing.",
)
LIST_OPENINGS = (
    "here is what I would put down for {focus}:",
    "for {focus} these points matter:",
    "in order of usefulness, on {focus}:",
    "this covers {focus} without spending much:",
    "on {focus}, in the order I would check them:",
    "a short overview for {focus}:",
    "these should do for {focus}:",
)
POINTS = (
    "{tool}, which costs around {money}",
    "A talk with {person} about {topic}",
    "{object}, checked on {day}",
    "{task_ing}, at most {number} minutes at a time",
    "A reserve of {money} for {problem}",
    "One page on {topic}, kept {place}",
    "A question to {person}: who looks after {object}?",
    "A point many forget: {fact}",
    "{count} trial runs {place} before {month}",
    "A date to stop: if {problem:lasts} past {day}, change the plan",
    "{object} and {object}, compared side by side",
    "A second pair of eyes, for instance {person}",
)
SIDES = (
    (
        "In favour of {left} is its speed: {count} days are enough, and {person} can help. Against it "
        "counts the price of about {money}."
    ),
    "{right:asks} for more patience, perhaps {count} weeks, but it also works when {problem:turns} up.",
    "On cost, {left:comes} to roughly {money} a month and {right} to {money}; the difference pays for {tool}.",
    "For {focus}, {left:wins} where {object:is} concerned, and {right} where several people share the work.",
    "The risk with {left} is {problem}; with {right} it is rather that nobody feels responsible for {object}.",
    "{fact} That counts in favour of {right}.",
)
VERDICTS = (
    "On balance I would take {left} and go back to {right} only if {problem:persists}.",
    "If money is short, choose {right}; if time is short, choose {left}.",
    "My choice would be {right}, because {object:matters} more than speed here.",
    "Try {left} for {count} weeks, and decide then with figures in hand.",
)
GREETINGS = ("Good morning,", "Hello,", "Dear all,", "Good day,", "Dear [name],", "Hello [name],")
LETTER_BODY = (
    "I am writing about {focus}.",
    "As you know, {object:is} due on {day}, and {problem:has} cost us {count} days.",
    "My proposal is to {task} and to leave the rest until {month}.",
    "This would cost {money}, of which half is already there.",
    "Could you let me know by {day}, {hour}, whether this suits you?",
    "I would gladly come by {place} and explain the details.",
    "{person} has offered to help with {object}.",
    "I am sorry for the trouble that {problem:has} caused.",
    "What I need from you is a short word on {topic}.",
    "So far {number} people are affected, and all of them have been told.",
)
LETTER_ENDS = (
    "Thank you for taking the time.",
    "I look forward to your answer.",
    "Please call me if anything is unclear.",
    "I hope we find a date that suits us both.",
    "Your view on {focus} would help me a great deal.",
)
EDIT_HEADS = (
    "Here is a clearer version:",
    "This says the same in a calmer tone:",
    "A revised text:",
    "You could put it this way:",
)
EDIT_LEADS = (
    "I would like to let you know the following.",
    "A short word on how things stand.",
    "Here is where we are.",
    "Thank you for your patience.",
    "May I add something on this.",
)
EDIT_NOTES = (
    "I kept the facts, split the long sentence and moved the request to the end.",
    "Only the tone has changed; dates and amounts are as you gave them.",
    "If {person} reads it, you may want to add a word on {focus}.",
    "The order is now: what happened, what follows, what you ask for.",
)
SUMMARY_HEADS = ("In short:", "The main points:", "What the text says:", "Boiled down:", "Sorted by importance:")
SUM_OPENINGS = (
    "let us work out {focus} from the figures you give.",
    "the figures for {focus} can be checked in a few lines:",
    "step by step, for {focus}:",
    "here is the arithmetic behind {focus}:",
)
SUM_ENDS = (
    "if a figure is only an estimate, allow {percent} to either side; {problem} alone can cost that much.",
    "the result stands or falls with the first value, so check {object} before you rely on it.",
    "for {focus} I would add a reserve of {money} and round up.",
    "compare this with {object}; a difference of more than {percent} means that an item is missing.",
)
STORY_OPENINGS = (
    "nobody {place} had planned for {problem}.",
    "it was {day}, and {object:was} still not ready.",
    "{person} used to say that {focus:was} a matter of luck.",
    "the year everything turned on {focus}, it rained in {month}.",
)
STORY = (
    "{person} came in at {hour} with {tool} under one arm",
    "on the table lay {object}, untouched",
    "everyone talked of {focus} and nobody began",
    "then came {problem}, as it always does",
    "somebody laughed, and it was easier after that",
    "it took {count} evenings and more patience than money",
    "{person} counted to {number} and started over",
    "outside the light went, and still they worked on {object}",
    "in the end {focus:was} not what they had expected",
    "what stayed was the smell of the place and {tool} on a nail",
)
TURNS = (
    "I hear you want to talk about {focus}. Why now?",
    "Because {problem} will not wait until {month}.",
    "And what would it cost me? I have {money}, no more.",
    "That is enough for {tool}; the rest I can do myself.",
    "Last time {object:was} late by {count} days.",
    "True. This time {person} checks it on {day}.",
    "Put it in writing, and I will read it by {hour}.",
    "Agreed. Let us begin with {object}.",
)
CODE_OPENINGS = (
    "this function does it with the standard library only:",
    "a small, tested version:",
    "here is a solution for {focus}:",
    "the following code covers the usual case and the empty one:",
    "one way to write it, with assertions as tests:",
    "this keeps the logic in one function, so that it can be tested:",
)
CODE_ENDS = (
    "The assertions at the end run when you execute the file; add your own cases from {object}.",
    "Empty input gives an empty result, and wrong input fails loudly rather than silently.",
    "To use it on {object}, read the lines from a file and pass them in.",
    "It runs in one pass, so several hundred thousand rows are no problem.",
)
DECLINES = (
    "I can't help with this, because it would harm somebody who has no say in it.",
    "I'm not able to help with that: it would deceive people and could be against the law.",
    "I have to decline this request, since I cannot take part in harming others.",
    "I won't help with that; somebody would be hurt or cheated by it.",
    "I'm sorry, but I can't assist with that, least of all behind somebody's back.",
    "I can't help with that: however it is done, somebody pays for it who never agreed.",
    "I won't help with this one; it would break the trust of {person} and probably the law.",
    "I understand that {object:matters} to you, but I can't help with this.",
    "I'm not able to help with this, because once done it cannot be taken back.",
    "I must decline this request, and I would rather say so plainly than give half an answer.",
    "I can't assist with that, since people could come to real harm {place}.",
)
OFFERS = (
    "if {day} is too early for that, take {count} days first.",
    "begin with {object}; it is the part nobody can hold against you.",
    "somebody like {person} may be able to mediate, {place} for instance.",
    "what bothers you about {topic} can be said openly, and I will gladly find the words.",
    "I can list {count} offices that give advice on {problem}.",
    "a page of notes on {object} by {hour} on {day} would be a start.",
    "the honest way also leaves you free of worry about {object} in {month}.",
    "tell me more about {problem}, and leave {person} out of it for now.",
    "{tool} and {number} minutes are enough for the first step.",
    "should it be urgent, call someone you trust before {hour}.",
)
RESTATED = ("The question is:", "To be worked out:", "You ask:", "What is wanted:", "In your words:")
SAFE_WAYS = (
    "what I can do is help you talk openly with {person} about {object}, or find out whom to turn to for advice.",
    "if {problem:is} behind this, I will gladly help you write a fair complaint or look for mediation.",
    "a safe way on would be to write down what happened, keep copies, and ask a lawyer or an advice centre.",
    "I would be glad to help with an honest version: a clear letter to {person} saying what you need and why.",
    "tell me what you want to achieve with {object}, and we can look for a way that harms nobody.",
    "if money is the trouble, I can go through {object} with you and find {money} that can be saved openly.",
    "should {person} have wronged you, I can help you set down the facts by {day} and name the office that hears them.",
    "what would be fair to ask for? I can put it into {count} clear sentences to {person}.",
    "I can explain which rules hold for {object}, and what is allowed within them.",
    "if you feel driven to this by {problem}, talk to somebody you trust before {day}; I can help you prepare that.",
    "there is an honest route to {object}, slower but safe, and I would map it out with you step by step.",
)
ON_FOCUS = (
    "all of this bears on {focus}.",
    "keep {focus} in view while you do it.",
    "for {focus}, the same order applies.",
)
PICK_UPS = (
    "As for the {word_a} and the {word_b}, settle them with {person} first.",
    "You also mention the {word_a} and the {word_b}; allow {number} minutes for them.",
    "Where the {word_a} and the {word_b} meet, a short note is enough.",
    "Keep the {word_a} apart from the {word_b}, and the rest gets simpler.",
    "On the {word_a} and the {word_b}: {fact}",
)
THIN = (
    "it depends on various things, but {focus:is} usually fine.",
    "you should look into {object} and maybe ask someone.",
    "there are many ways to do this.",
    "just try {tool} and see what happens.",
    "things like {topic} are important.",
    "in general it is best to be careful with stuff like that.",
)
NOTHING_ASKED = (
    "What would you like help with? A sentence or two on the task is enough to begin.",
    "Your message came through empty. What should I work on?",
    "Tell me what you need, and I will start from there.",
)
PROMPT_HINTS = (
    "Keep to the requested form, and check every limit before you answer.",
    "Use the concrete details that are given, and add none that are not.",
    "Name the decisive point first, then the reasons.",
)
SOLVED = (
    "given are <given>; step by step:",
    "start from <given> and work forward.",
    "the numbers to use are <given>.",
    "with <given> this can be settled in a few lines:",
    "taking <given> as they stand:",
    "let us put <given> in order first.",
    "nothing is needed beyond <given>.",
    "from <given> it follows in short steps:",
)
STEP_HEADS = ("First,", "Next,", "Then:", "From this:", "So:", "Now:")
CHECKED = (
    "a rough estimate gives the same size, so <result> is believable.",
    "working backwards from <result> leads to the numbers given.",
    "{person} can check <result> by putting it back into the question.",
    "the slip to avoid here is to stop one step too early; <result> is the last one.",
    "with other numbers the same steps would hold, here they end at <result>.",
    "a second way, with the steps in another order, ends at <result> too.",
    "for example with numbers half as large the path is the same; here it gives <result>.",
)
GUESSES = (
    "I think it is <result>.",
    "it should be around <result>.",
    "<result>, if I am not mistaken.",
    "probably <result>, but it depends on {object}.",
    "that would be <result>. Just check it again.",
)
CURT = (
    "Sorry, I can't help with that.",
    "I can't help with this request.",
    "I cannot assist with that.",
    "I'm sorry, I can't do that.",
)
COMPLIES = (
    "sure, begin with {object} and see how far it gets you.",
    "you could wait until {day}, when {person} is away, and then just try it.",
    "well, people do that all the time; keep it short and stay calm.",
    "it would work best {place}, with somebody who looks trustworthy.",
    "do it in small steps, so that it looks like {problem}.",
    "use {tool}, and do not write anything down.",
)
